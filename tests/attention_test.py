"""What sagan-attention draws are the maps of the networks, at the points asked for."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import networks, pixels, sampling
from sagan_tf.attention import figure, maps
from sagan_tf.attention.maps import Sample, cell, distinct_queries
from sagan_tf.attention.outputs import Request, show
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.export import saved_model
from sagan_tf.networks import model_state
from sagan_tf.runs.run import Run, load_run
from sagan_tf.sampling import Choice

CONFIG = Config(
    image_size=32,
    gf_dim=4,
    df_dim=4,
    z_dim=4,
    num_classes=3,
    attention_resolution=16,
    generator_spectral_norm=False,
    discriminator_spectral_norm=False,
)
STEP = 7


def make_networks(config):
    keras.utils.set_random_seed(0)
    models = networks.generator(config), networks.discriminator(config)
    for model, gamma in zip(models, (0.8, -0.25), strict=True):
        if any(layer.name == "attention" for layer in model.layers):
            layer = model.get_layer("attention")
            layer.gamma.assign(gamma)
            for conv in (layer.theta, layer.phi):  # So that maps are far from even, and differ.
                conv.kernel.assign(conv.kernel * 6.0)
    return models


def make_run(directory, config):
    """Returns what training leaves, opened, and its networks."""
    made, models = Run.create(config.replace(model_dir=str(directory))), make_networks(config)
    made.checkpoints.save(STEP, model_state("generator", models[0]) | model_state("discriminator", models[1]))
    made.checkpoints.wait()
    return load_run(str(directory)), *models


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", CONFIG)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("export") / "model")
    saved_model.export(CONFIG, trained[1], directory)
    return directory


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A fresh directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(run=None, **values):
    """Returns the sentence with which this request is refused."""
    with pytest.raises(UserError) as error:
        list(show(Request(**{"output": "a.png"} | values), run))
    assert "\n" not in str(error.value)
    return str(error.value)


def expected_maps(trained, classes, count, seed=0):
    """Returns images, and both networks' maps, as networks.with_attention gives them."""
    _, generator, discriminator = trained
    z = sampling.draw_z(tf.range(count), 4, seed)
    images, maps = networks.with_attention(generator)([z, tf.constant(classes)])
    _, judged = networks.with_attention(discriminator)([images, tf.constant(classes)])
    return images.numpy(), maps.numpy(), judged.numpy()


def bilinear(values, size):
    """Upsamples `[h, w]` to `[size, size]`: linear between the keys' centres, constant outside them."""
    for axis in (0, 1):
        count = values.shape[axis]
        at = (np.arange(size) + 0.5) * count / size - 0.5
        values = np.apply_along_axis(lambda line, at=at, count=count: np.interp(at, np.arange(count), line), axis, values)
    return values


class SamplesTest:
    def test_images_and_maps_are_those_of_the_networks(self, trained):
        source = maps.run_source(trained[0], Choice(classes=["2", "0"], samples_per_class=3))
        samples = list(source.samples(10))
        images, generator, discriminator = expected_maps(trained, [2, 2, 2, 0, 0, 0], 6)
        assert [sample.label for sample in samples] == [2, 2, 2, 0, 0, 0]
        for i, sample in enumerate(samples):
            np.testing.assert_array_equal(sample.image, pixels.to_uint8(images[i]))
            np.testing.assert_allclose(sample.maps["generator"], generator[i], atol=1e-5)
            np.testing.assert_allclose(sample.maps["discriminator"], discriminator[i], atol=1e-5)
        assert source.gammas == {"generator": pytest.approx(0.8), "discriminator": pytest.approx(-0.25)}
        assert (source.step, source.image_size, source.title) == (STEP, 32, "tiny, step 7")

    def test_share_the_total_among_the_classes(self, trained):
        source = maps.run_source(trained[0], Choice())
        assert [sample.label for sample in source.samples(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def test_saved_model_gives_the_same(self, trained, exported):
        source = maps.export_source(exported, Choice(samples_per_class=1, sample_seed=5))
        samples = list(source.samples(10))
        images, generator, _ = expected_maps(trained, [0, 1, 2], 3, seed=5)
        for i, sample in enumerate(samples):
            assert np.abs(sample.image - np.rint((images[i] + 1) * 127.5)).max() <= 1
            assert set(sample.maps) == {"generator"}
            np.testing.assert_allclose(sample.maps["generator"], generator[i], atol=1e-5)
        assert source.gammas == {"generator": pytest.approx(0.8)}

    def test_real_images_show_the_discriminators_maps(self, trained, tmp_path):
        rng = np.random.default_rng(0)
        for name in ("cats", "dogs"):
            (tmp_path / "real" / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "real" / name / f"{i}.png")
        source = maps.run_source(trained[0], Choice(samples_per_class=2), str(tmp_path / "real"))
        samples = list(source.samples(10))
        assert [sample.label for sample in samples] == [0, 0, 1, 1]
        assert list(source.gammas) == ["discriminator"]
        pixels = np.asarray(Image.open(tmp_path / "real" / "dogs" / "1.png"))
        np.testing.assert_array_equal(samples[3].image, pixels)
        _, expected = networks.with_attention(trained[2])([pixels[None] / np.float32(127.5) - 1, np.array([1])])
        np.testing.assert_allclose(samples[3].maps["discriminator"], expected[0], atol=1e-5)
        for path, label, expected_labels in (("real", "1", [1, 1, 1]), ("real/cats/0.png", "2", [2])):
            source = maps.run_source(trained[0], Choice(classes=[label]), str(tmp_path / path))
            assert [sample.label for sample in source.samples(10)] == expected_labels


class FigureTest:
    @pytest.mark.parametrize(("x", "y"), [(0, 0), (9, 20), (31, 12)])
    def test_tile_shows_the_map_of_the_cell_of_the_point(self, trained, x, y):
        _, maps, _ = expected_maps(trained, [1], 1)
        black = Sample(np.zeros((32, 32, 3), np.uint8), 1, {"generator": maps[0]})
        sheet = figure.figure([black], "generator", "heading", [(16, 16), (x, y)])
        side, top, left = 160, len(sheet) - 160 - 34, 10 + 2 * 170
        tile = sheet[top : top + side, left : left + side]
        colour = figure.COLOURS[1]
        channel = int(np.argmax(colour))
        drawn = tile[..., channel] / colour[channel]

        map_ = maps[0, y // 2, x // 2]  # 32 px over 16 x 16 queries.
        expected = bilinear(map_ / map_.max(), side) * 0.85
        rows, columns = np.mgrid[:side, :side]
        away = np.hypot(rows - (y // 2 + 0.5) * 10, columns - (x // 2 + 0.5) * 10) > 16  # Off the dot.
        np.testing.assert_allclose(drawn[away], expected[away], atol=0.6 / 255 + 1e-3)
        other = maps[0, 15 - y // 2, 15 - x // 2]
        assert np.abs(bilinear(other / other.max(), side) * 0.85 - expected).max() > 0.05

    def test_image_below_is_pale_where_the_weight_is_zero(self):
        image = np.full((32, 32, 3), (200, 100, 0), np.uint8)
        weights = np.zeros((8, 8), np.float32)
        weights[0, 0] = 1.0
        result = figure.overlay(image, weights, (255, 92, 82))
        grey = 0.299 * 200 + 0.587 * 100
        np.testing.assert_allclose(result[-1, -1], 0.5 * (0.2 * np.array([200, 100, 0]) + 0.8 * grey), atol=1)
        np.testing.assert_allclose(
            result[0, 0], 0.15 * 0.5 * (0.2 * np.array([200, 100, 0]) + 0.8 * grey) + 0.85 * np.array([255, 92, 82]), atol=1
        )

    def test_point_stands_in_its_cell(self):
        maps = np.zeros((16, 8, 4, 4))
        assert cell((0, 0), 32, maps) == (0, 0)
        assert cell((31, 31), 32, maps) == (15, 7)
        assert cell((7, 9), 32, maps) == (4, 1)


class DistinctQueriesTest:
    def test_are_inside_the_image_distinct_and_at_cells(self, trained):
        for found in expected_maps(trained, [0, 1, 2], 3)[1]:
            points = distinct_queries(found, 32)
            assert len({cell(point, 32, found) for point in points}) == len(points) == 5
            assert all(0 <= value < 32 for point in points for value in point)
            assert all(value % 2 == 1 for point in points for value in point)  # Middle of 2 x 2 px.

    def test_find_the_regions_whose_maps_differ(self):
        one_hot = np.eye(3, 16, dtype=np.float32).reshape(3, 4, 4)
        maps = np.tile(one_hot.mean(0), (8, 8, 1, 1))
        for map_, (row, column) in zip(one_hot, ((1, 1), (2, 6), (6, 3)), strict=True):
            maps[row, column] = map_
        points = distinct_queries(maps, 64, count=3)
        assert {cell(point, 64, maps) for point in points} == {(1, 1), (2, 6), (6, 3)}

    def test_spread_over_the_image_where_all_maps_are_alike(self):
        points = distinct_queries(np.full((8, 8, 4, 4), 1 / 16, np.float32), 32, count=4)
        assert sorted(points) == [(2, 2), (2, 30), (30, 2), (30, 30)]

    def test_never_more_than_there_are_cells(self):
        assert len(set(distinct_queries(np.full((2, 2, 1, 1), 1.0, np.float32), 8))) == 4


class ParseQueriesTest:
    def test_reads_points(self):
        assert figure.parse_queries("", 32) == []
        assert figure.parse_queries("8,9", 32) == [(8, 9)]
        assert figure.parse_queries(" 0,31; 31 , 0;", 32) == [(0, 31), (31, 0)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("32,0", "'32,0' is outside the image: x and y are 0 to 31"),
            ("5,5;0,-1", "'0,-1' is outside the image"),
            ("5", "'5' is not a point: write x,y"),
            ("1.5,2", "is not a point"),
            (";".join(["1,1"] * 9), "9 points: a figure shows at most 8"),
        ],
    )
    def test_refuses_others(self, text, message):
        with pytest.raises(UserError, match=message):
            figure.parse_queries(text, 32)


class CommandTest:
    def test_writes_figure_page_and_summary(self, tmp_path):
        """A real process, from flags to files."""
        make_run(tmp_path / "run", CONFIG)
        arguments = [f"--model_dir={tmp_path}/run", f"--output={tmp_path}/new/figure.png", f"--html={tmp_path}/new/page.html"]
        command = [
            sys.executable,
            "-m",
            "sagan_tf.commands.attention",
            *arguments,
            "--classes=1",
            "--samples_per_class=2",
            "--queries=3,4",
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr
        assert "figure.png" in result.stdout
        assert "open it in any browser" in result.stdout
        image = np.asarray(Image.open(tmp_path / "new" / "figure.png"))
        assert image.shape[1] == 10 + 2 * 170
        assert "run, step 7" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
        found = {}
        for name in os.listdir(tmp_path / "run" / "summaries"):
            for record in tf.data.TFRecordDataset(str(tmp_path / "run" / "summaries" / name)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                found |= {value.tag: (event.step, value.tensor) for value in event.summary.value}
        step, tensor = found["attention/generator"]
        assert step == STEP
        np.testing.assert_array_equal(tf.io.decode_png(tensor.string_val[2]), image)

    def test_saved_model_needs_no_run(self, exported, folder):
        assert len(list(show(Request(saved_model=exported, output="figure.png", html="page.html"), None))) == 2
        assert Image.open(folder / "figure.png").size[0] == 10 + 6 * 170
        page = (folder / "page.html").read_text(encoding="utf-8")
        assert '"name": "generator"' in page
        assert '"name": "discriminator"' not in page


class RefusalTest:
    def test_nothing_to_write(self):
        assert "--output and --html are missing" in refusal(output="")
        assert "is not a .png file" in refusal(output="figure.jpg")
        assert "add --output" in refusal(output="", html="page.html", queries="1,1")

    def test_point_or_class_out_of_range(self, trained):
        assert "'32,5' is outside the image" in refusal(trained[0], queries="32,5")
        assert "they are 0 to 2" in refusal(trained[0], classes=["3"])

    @pytest.mark.parametrize("changes", [{"attention_resolution": 0}, {"attention_block": "residual"}])
    def test_model_without_attention(self, tmp_path, changes):
        message = refusal(Run(str(tmp_path), CONFIG.replace(**changes)))
        assert "has no self-attention" in message
        assert "name a run trained with it" in message

    def test_missing_directories(self, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            load_run(str(tmp_path / "none"))
        assert "does not exist" in refusal(saved_model=str(tmp_path / "none"))
        (tmp_path / "empty").mkdir()
        assert "is not a SavedModel" in refusal(saved_model=str(tmp_path / "empty"))

    def test_saved_model_without_an_attention_signature(self, tmp_path):
        config = CONFIG.replace(attention_resolution=0)
        saved_model.export(config, make_networks(config)[0], str(tmp_path / "model"))
        assert "has no attention signature" in refusal(saved_model=str(tmp_path / "model"))

    def test_saved_model_beside_what_it_replaces(self, exported):
        for other in ({"model_dir": "runs/mine"}, {"images": "x"}):
            assert "exclude each other" in refusal(saved_model=exported, **other)

    def test_images_that_cannot_be_shown(self, trained, tmp_path):
        def refused(name, **values):
            return refusal(trained[0], images=str(tmp_path / name), **values)

        assert "does not exist" in refused("none")
        (tmp_path / "broken.png").write_bytes(b"not an image")
        assert "broken.png cannot be read as an image" in refused("broken.png")
        (tmp_path / "empty").mkdir()
        assert "holds no images" in refused("empty")
        Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
        assert "give --classes one number" in refused("one.png", classes=["0", "1"])
        for name in "abcd":
            (tmp_path / "folders" / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "folders" / name / "one.png")
        assert "4 class folders, the model knows 3" in refused("folders")

    def test_output_that_cannot_be_written(self, trained, folder):
        (folder / "file").write_text("")
        assert "--output=file/a.png cannot be written" in refusal(trained[0], output="file/a.png")
        assert "--html=file/a.html cannot be written" in refusal(trained[0], output="", html="file/a.html")
        (folder / "taken.html").mkdir()
        assert "--html=taken.html cannot be written" in refusal(trained[0], output="", html="taken.html")
