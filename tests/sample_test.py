"""What sagan-sample draws are the generator's own images: walks, sweeps, neighbours and large numbers of samples."""

import functools
import os
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import config as config_lib
from sagan_tf import networks, pixels, sampling
from sagan_tf.commands import cli, sample
from sagan_tf.config import CONFIG_FILE, Config
from sagan_tf.data import twins
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers
from sagan_tf.networks import model_state
from sagan_tf.runs.checkpoints import Checkpoints

CONFIG = Config(
    image_size=32, gf_dim=2, df_dim=2, z_dim=4, num_classes=3, attention_resolution=16, classifier="embedded", batch_size=4
)


def make_networks(config):
    """Returns networks with as different classes as training makes them."""
    keras.utils.set_random_seed(0)
    generator, discriminator = networks.generator(config), networks.discriminator(config)
    rng = np.random.default_rng(0)
    for variable in generator.variables:
        if variable.path.endswith(("gamma", "beta")) and "cbn" in variable.path:
            variable.assign(variable.numpy() + rng.normal(0, 0.7, variable.shape))
    return generator, discriminator


def write_run(directory, config, models):
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, CONFIG_FILE), "w", encoding="utf-8") as file:
        file.write(config.to_json())
    checkpoints = Checkpoints(str(directory))
    checkpoints.save(5, model_state("generator", models[0]) | model_state("discriminator", models[1]))
    checkpoints.wait()
    return str(directory)


@pytest.fixture(scope="module")
def generator():
    return make_networks(CONFIG)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", CONFIG, make_networks(CONFIG))


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    config = CONFIG.replace(num_classes=0)
    return write_run(tmp_path_factory.mktemp("runs") / "plain", config, make_networks(config))


@pytest.fixture(scope="module")
def restore():
    """Reads each run once: building the networks is most of a command's time."""
    return functools.cache(sample.restore)


@pytest.fixture
def command(monkeypatch, tmp_path, trained, restore):
    """Runs the command with these flags in a fresh directory."""
    monkeypatch.chdir(tmp_path)
    defaults = {"output": "out.png", "classes": [], "samples_per_class": 0, "sample_seed": 0, "truncation": 0.0}
    defaults |= {"interpolate": None, "steps": 0, "truncation_sweep": [], "neighbours": 0, "num_images": 0}
    defaults |= {"checkpoint_step": None, "use_ema": None, "model_dir": trained}

    def call(**values):
        namespace = types.SimpleNamespace(**defaults | values)
        monkeypatch.setattr(sample, "FLAGS", namespace)
        monkeypatch.setattr(sample, "restore", restore)
        monkeypatch.setattr(cli, "trained_config", lambda: config_lib.load(namespace.model_dir))
        sample.main()

    return call


def read(path):
    return np.asarray(Image.open(path))


def tiles(path, rows, columns):
    """Cuts a grid into its images, `[rows, columns, 32, 32, 3]`."""
    sheet = read(path)
    assert sheet.shape == (rows * 34 + 2, columns * 34 + 2, 3)
    return sheet[2:, 2:].reshape(rows, 34, columns, 34, 3).transpose(0, 2, 1, 3, 4)[:, :, :32, :32]


class SlerpTest:
    def test_ends_are_exact(self):
        a, b = np.float32(np.random.default_rng(0).standard_normal((2, 128)))
        np.testing.assert_array_equal(sample.slerp(a, b, 0.0), a)
        np.testing.assert_array_equal(sample.slerp(a, b, 1.0), b)

    def test_moves_at_constant_angle_and_length_on_the_sphere(self):
        a, b = np.random.default_rng(1).standard_normal((2, 16))
        a, b = 3 * a / np.linalg.norm(a), 3 * b / np.linalg.norm(b)
        whole = np.arccos(a @ b / 9)
        for fraction in (0.25, 0.5, 0.8):
            c = sample.slerp(a, b, fraction)
            assert np.linalg.norm(c) == pytest.approx(3, rel=1e-6)
            assert np.arccos(a @ c / 9) == pytest.approx(fraction * whole, rel=1e-4)

    def test_parallel_vectors_are_interpolated_linearly(self):
        a = np.float32([1.0, 2.0])
        np.testing.assert_allclose(sample.slerp(a, 3 * a, 0.5), 2 * a)


class PathTest:
    def test_stops_are_exact_and_counted_once(self):
        frames = sample.path(3, 4)
        assert frames == [(0, 0.0), (0, 1 / 3), (0, 2 / 3), (1, 0.0), (1, 1 / 3), (1, 2 / 3), (1, 1.0)]
        assert sample.path(2, 2) == [(0, 0.0), (0, 1.0)]


class MixtureTest:
    def test_parameters_are_those_that_numpy_interpolates(self, generator):
        """As many mixtures as classes, so that shapes alone would not tell tables from other variables."""
        weights = np.float32([[0.5, 0, 0.5], [0, 1, 0], [0.25, 0.75, 0]])
        mixture = sample.class_mixture(generator, CONFIG, weights)
        tables = 0
        for before, after in zip(generator.variables, mixture.variables, strict=True):
            value = before.numpy()
            if "cbn" in before.path and before.path.endswith(("gamma", "beta")):
                tables += 1
                middle = 0.5 * np.float64(value[0]) + 0.5 * np.float64(value[2])
                np.testing.assert_allclose(after.numpy()[0], middle, rtol=1e-6)
                np.testing.assert_array_equal(after.numpy()[1], value[1])
                np.testing.assert_allclose(after.numpy()[2], 0.25 * value[0] + 0.75 * value[1], rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(after.numpy(), value, err_msg=before.path)
        assert tables == 12  # Three blocks of two norms with scale and offset.

    def test_middle_is_no_mixture_of_the_images(self, generator):
        walk = sample.interpolate_classes(generator, CONFIG, [0, 2], 2, 3)
        assert np.abs(walk[:, 1] - (walk[:, 0] + walk[:, 2]) / 2).max() > 0.05


class InterpolationTest:
    def test_z_passes_the_plain_samples(self, command):
        command(output="walk.png", interpolate="z", steps=5, samples_per_class=3, classes=["2", "0"], sample_seed=4)
        command(output="plain.png", samples_per_class=3, classes=["2", "0"], sample_seed=4)
        walk, plain = tiles("walk.png", 2, 9), tiles("plain.png", 2, 3)
        np.testing.assert_array_equal(walk[:, ::4], plain)
        assert (walk[:, 2] != plain[:, 0]).any()
        assert (walk[:, 2] != plain[:, 1]).any()

    def test_z_is_that_of_slerp_in_between(self, generator):
        walk = sample.interpolate_z(generator, CONFIG, [1], 2, 3, seed=3)
        z = sampling.draw_z(tf.range(2), 4, 3).numpy()
        middle = generator([sample.slerp(z[0], z[1], 0.5)[None], np.array([1])], training=False)
        np.testing.assert_allclose(walk[0, 1], middle[0], atol=1e-5)

    def test_classes_pass_the_plain_samples(self, command):
        command(output="walk.png", interpolate="classes", steps=4, samples_per_class=2, classes=["2", "0", "1"])
        walk = tiles("walk.png", 2, 7)
        for stop, label in ((1, "0"), (2, "1")):
            command(output="plain.png", samples_per_class=2, classes=[label])
            np.testing.assert_array_equal(walk[:, 3 * stop], tiles("plain.png", 1, 2)[0])

    @pytest.mark.parametrize("suffix", ["webp", "gif"])
    def test_animation_goes_there_and_back(self, command, suffix):
        command(output=f"walk.{suffix}", interpolate="classes", steps=4, samples_per_class=1, classes=["0", "1"])
        with Image.open(f"walk.{suffix}") as image:
            assert image.size == (8 * 36, 8 * 36)
            assert image.n_frames == 6
            assert image.info["loop"] == 0
            frames = []
            for number in range(6):
                image.seek(number)
                frames.append(np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(frames[1], frames[5])
        assert (frames[0] != frames[3]).any()
        if suffix == "webp":  # Lossless: enlarged by 8, the first frame is the strip's first image.
            command(output="walk.png", interpolate="classes", steps=4, samples_per_class=1, classes=["0", "1"])
            np.testing.assert_array_equal(frames[0][16:-16:8, 16:-16:8], tiles("walk.png", 1, 4)[0, 0])

    def test_unconditional_run_walks_in_z_alone(self, command, unconditional):
        command(model_dir=unconditional, interpolate="z", output="walk.png")
        tiles("walk.png", 1, 8)
        with pytest.raises(UserError, match="no classes to walk between: use --interpolate=z"):
            command(model_dir=unconditional, interpolate="classes")


class SweepTest:
    def test_rows_are_the_plain_samples_under_their_bounds(self, generator, command):
        rows = sample.sweep_truncation(generator, CONFIG, [0, 2], 2, [0.0, 0.5], seed=6)
        for row, bound in zip(rows, (0.0, 0.5), strict=True):
            command(output="plain.png", samples_per_class=2, classes=["0", "2"], sample_seed=6, truncation=bound)
            np.testing.assert_array_equal(pixels.to_uint8(row).reshape(2, 2, 32, 32, 3), tiles("plain.png", 2, 2))

    def test_bounds_keep_each_sample_recognisable(self):
        """The quantiles of z stay: signs and order of the components, and a wide bound changes next to nothing."""
        free = sampling.draw_z(tf.range(50), 16, 0).numpy()
        tight = sampling.draw_z(tf.range(50), 16, 0, 0.5).numpy()
        np.testing.assert_array_equal(np.sign(tight), np.sign(free))
        np.testing.assert_array_equal(np.argsort(tight, axis=None), np.argsort(free, axis=None))
        np.testing.assert_allclose(sampling.draw_z(tf.range(50), 16, 0, 6.0).numpy(), free, atol=1e-4)

    def test_sheet_holds_the_images(self, command):
        command(output="sweep.png", truncation_sweep=["0", "0.5"], samples_per_class=2, classes=["1"])
        command(output="plain.png", samples_per_class=2, classes=["1"])
        sheet = read("sweep.png")
        for image in tiles("plain.png", 1, 2)[0]:
            large = image.repeat(4, 0).repeat(4, 1)
            lefts = range(sheet.shape[1] - 128 + 1)
            assert any((sheet[6:134, left : left + 128] == large).all() for left in lefts)


class NeighboursTest:
    @pytest.fixture(scope="class")
    def source(self):
        made = twins.TwinsSource(32)
        made.num_examples = 200
        return made

    def test_equal_brute_force_and_find_a_planted_image(self, source, generator):
        real = source.examples(tf.range(200, dtype=tf.int64))["images"].numpy()
        quantized = pixels.to_uint8(real)
        rng = np.random.default_rng(0)
        queries = np.stack([quantized[131], rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), quantized[5] // 2])
        classifier = classifiers.load("embedded")
        by_pixels, by_features = sample.nearest_neighbours(queries, source, classifier, 7)
        squares = ((np.int64(queries)[:, None] - np.int64(quantized)) ** 2).sum((2, 3, 4))  # [3, 200]
        order = np.argsort(squares, 1, kind="stable")[:, :7]
        np.testing.assert_array_equal(by_pixels.indices, order)
        np.testing.assert_array_equal(by_pixels.squares, np.take_along_axis(squares, order, 1))
        assert by_pixels.squares[0, 0] == 0
        assert (quantized[by_pixels.indices[0, 0]] == quantized[131]).all()
        features = np.float64(classifier.run(tf.constant(real))[1])
        asked = np.float64(classifier.run(tf.constant(np.float32(queries) / 127.5 - 1))[1])
        distances = np.sqrt(((asked[:, None] - features) ** 2).sum(2))
        np.testing.assert_allclose(np.sqrt(by_features.squares), np.sort(distances, 1)[:, :7], rtol=1e-4, atol=1e-3)
        assert by_features.squares[0, 0] < 1e-6

    def test_keeps_no_more_than_asked(self):
        nearest = sample.Nearest(np.zeros((1, 2)), 2)
        for start in (5, 3, 0):
            nearest.add(np.arange(start, start + 2)[:, None] * np.ones(2))
        assert nearest.indices.tolist() == [[4, 5]]
        assert nearest.squares.tolist() == [[0.0, 2.0]]

    def test_command_writes_a_sheet(self, command, monkeypatch, capsys, source):
        monkeypatch.setattr(sample.data, "open_source", lambda config: source)
        command(neighbours=2, output="near.png")
        assert "nearest 2 of 200 training images to 6 samples" in capsys.readouterr().out
        assert read("near.png").shape[1] > 5 * 128
        with pytest.raises(UserError, match="--neighbours=201, but the dataset has 200 images"):
            command(neighbours=201)


class ManyTest:
    def test_npz_holds_the_images_of_the_folder(self, command):
        """More than one batch, the last one partial; both are those of sagan-evaluate: number n is of class n mod 3."""
        command(num_images=70, output="many.npz", sample_seed=2)
        command(num_images=70, output="many", sample_seed=2)
        with np.load("many.npz") as file:
            images, labels = file["images"], file["labels"]
        assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (70, 32, 32, 3), np.int32)
        np.testing.assert_array_equal(labels, np.arange(70) % 3)
        names = sorted(os.listdir("many"))
        assert names[:2] == ["0000000_class0000.png", "0000001_class0001.png"]
        np.testing.assert_array_equal(np.stack([read(f"many/{name}") for name in names]), images)

    def test_images_are_those_of_the_generator(self, command, generator):
        command(num_images=5, output="many.npz", sample_seed=2, truncation=1.0, classes=["2", "1"])
        with np.load("many.npz") as file:
            images, labels = file["images"], file["labels"]
        assert labels.tolist() == [2, 1, 2, 1, 2]
        expected = sampling.generate(generator, sampling.draw_z(tf.range(5), 4, 2, 1.0), labels)
        assert np.abs(np.int64(images) - pixels.to_uint8(expected)).max() <= 1

    def test_replicas_share_the_work_in_order(self, generator):
        strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            copy = networks.generator(CONFIG)
            copy.set_weights(generator.get_weights())
        alone, shared = (
            [np.concatenate(each) for each in zip(*sample.stream(model, 4, [0, 1, 2], 150, strategy=where), strict=True)]
            for model, where in ((generator, None), (copy, strategy))
        )
        np.testing.assert_array_equal(alone[1], shared[1])
        assert np.abs(np.int64(alone[0]) - shared[0]).max() <= 1

    def test_failure_leaves_no_half_file(self, tmp_path):
        def batches():
            yield np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32)
            raise RuntimeError("lost")

        with pytest.raises(RuntimeError):
            sample.write_npz(str(tmp_path / "x.npz"), batches(), 4, 4)
        assert os.listdir(tmp_path) == []


class RefusalTest:
    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ({"output": ""}, "--output is missing"),
            ({"interpolate": "z", "neighbours": 2}, "--interpolate and --neighbours exclude each other"),
            ({"truncation_sweep": ["1"], "num_images": 2}, "--truncation_sweep and --num_images exclude each other"),
            ({"truncation_sweep": ["1"], "truncation": 0.5}, "--truncation and --truncation_sweep exclude each other"),
            ({"num_images": 5, "samples_per_class": 2, "output": "x"}, "--num_images and --samples_per_class exclude"),
            ({"steps": 4}, "--steps is for --interpolate"),
            ({"interpolate": "z", "steps": 1}, "both ends are counted"),
            ({"interpolate": "z", "output": "x.jpg"}, r"writes a .png, .gif or .webp file"),
            ({"interpolate": "z", "samples_per_class": 1}, "nothing to walk to"),
            ({"interpolate": "classes", "classes": ["1"]}, "name at least two"),
            ({"truncation_sweep": ["1", "x"]}, "'x' is not a bound"),
            ({"truncation_sweep": ["-1"]}, "'-1' is not a bound"),
            ({"neighbours": 2, "output": "x.gif"}, "--neighbours writes a .png file"),
            ({"num_images": 2}, "writes a directory or an .npz"),
            ({"output": "x.npz"}, "goes with --num_images"),
            ({"output": "x.gif"}, "goes with --interpolate"),
            ({"classes": ["3"]}, "they are 0 to 2"),
        ],
    )
    def test_one_sentence(self, command, values, text):
        with pytest.raises(UserError, match=text) as error:
            command(**values)
        assert "\n" not in str(error.value)
        assert os.listdir() == []

    def test_folder_in_use(self, command):
        os.mkdir("old")
        open("old/a.png", "w").close()
        with pytest.raises(UserError, match="old is not empty"):
            command(num_images=2, output="old")

    @pytest.mark.parametrize("values", [{}, {"interpolate": "z"}, {"num_images": 3, "output": "file/x.npz"}])
    def test_unwritable_output(self, command, values):
        open("file", "w").close()
        with pytest.raises(UserError, match="cannot be written"):
            command(**{"output": "file/x.png"} | values)
