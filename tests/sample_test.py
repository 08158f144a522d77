"""What sagan-sample draws are the generator's own images: walks, sweeps, neighbours and large numbers of samples."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import networks, pixels, sampling, walks
from sagan_tf.config import Config
from sagan_tf.data import faces
from sagan_tf.errors import UserError
from sagan_tf.gallery import bulk, modes
from sagan_tf.networks import model_state
from sagan_tf.runs.run import Run, load_run
from sagan_tf.sampling import Draws, sampler, stream

CONFIG = Config(
    image_size=32, gf_dim=2, df_dim=2, z_dim=4, num_classes=3, attention_resolution=16, classifier="faces", batch_size=4
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


def make_run(directory, config):
    """Returns what training leaves, opened; it reads its networks once, since to build them takes most of the time."""
    made, (generator, discriminator) = Run.create(config.replace(model_dir=str(directory))), make_networks(config)
    made.checkpoints.save(5, model_state("generator", generator) | model_state("discriminator", discriminator))
    made.checkpoints.wait()
    run = load_run(str(directory))
    run.networks = functools.cache(run.networks)
    return run


@pytest.fixture(scope="module")
def generator():
    return make_networks(CONFIG)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", CONFIG)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "plain", CONFIG.replace(num_classes=0))


@pytest.fixture
def draw(monkeypatch, tmp_path, trained):
    """Draws what is asked for in a fresh directory."""
    monkeypatch.chdir(tmp_path)

    def call(run=trained, **values):
        return modes.draw(run, modes.Request(**{"output": "out.png"} | values))

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
        np.testing.assert_array_equal(walks.slerp(a, b, 0.0), a)
        np.testing.assert_array_equal(walks.slerp(a, b, 1.0), b)

    def test_moves_at_constant_angle_and_length_on_the_sphere(self):
        a, b = np.random.default_rng(1).standard_normal((2, 16))
        a, b = 3 * a / np.linalg.norm(a), 3 * b / np.linalg.norm(b)
        whole = np.arccos(a @ b / 9)
        for fraction in (0.25, 0.5, 0.8):
            c = walks.slerp(a, b, fraction)
            assert np.linalg.norm(c) == pytest.approx(3, rel=1e-6)
            assert np.arccos(a @ c / 9) == pytest.approx(fraction * whole, rel=1e-4)

    def test_parallel_vectors_are_interpolated_linearly(self):
        a = np.float32([1.0, 2.0])
        np.testing.assert_allclose(walks.slerp(a, 3 * a, 0.5), 2 * a)


class PathTest:
    def test_stops_are_exact_and_counted_once(self):
        frames = walks.path(3, 4)
        assert frames == [(0, 0.0), (0, 1 / 3), (0, 2 / 3), (1, 0.0), (1, 1 / 3), (1, 2 / 3), (1, 1.0)]
        assert walks.path(2, 2) == [(0, 0.0), (0, 1.0)]


class MixtureTest:
    def test_parameters_are_those_that_numpy_interpolates(self, generator):
        """As many mixtures as classes, so that shapes alone would not tell tables from other variables."""
        weights = np.float32([[0.5, 0, 0.5], [0, 1, 0], [0.25, 0.75, 0]])
        mixture = walks.class_mixture(generator, CONFIG, weights)
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
        walk = walks.interpolate_classes(generator, CONFIG, [0, 2], 2, 3, Draws())
        assert np.abs(walk[:, 1] - (walk[:, 0] + walk[:, 2]) / 2).max() > 0.05


class InterpolationTest:
    def test_z_passes_the_plain_samples(self, draw):
        draw(output="walk.png", interpolate="z", steps=5, samples_per_class=3, classes=["2", "0"], sample_seed=4)
        draw(output="plain.png", samples_per_class=3, classes=["2", "0"], sample_seed=4)
        walk, plain = tiles("walk.png", 2, 9), tiles("plain.png", 2, 3)
        np.testing.assert_array_equal(walk[:, ::4], plain)
        assert (walk[:, 2] != plain[:, 0]).any()
        assert (walk[:, 2] != plain[:, 1]).any()

    def test_z_is_that_of_slerp_in_between(self, generator):
        walk = walks.interpolate_z(generator, CONFIG, [1], 2, 3, Draws(seed=3))
        z = sampling.draw_z(tf.range(2), 4, 3).numpy()
        middle = generator([walks.slerp(z[0], z[1], 0.5)[None], np.array([1])], training=False)
        np.testing.assert_allclose(walk[0, 1], middle[0], atol=1e-5)

    def test_classes_pass_the_plain_samples(self, draw):
        draw(output="walk.png", interpolate="classes", steps=4, samples_per_class=2, classes=["2", "0", "1"])
        walk = tiles("walk.png", 2, 7)
        for stop, label in ((1, "0"), (2, "1")):
            draw(output="plain.png", samples_per_class=2, classes=[label])
            np.testing.assert_array_equal(walk[:, 3 * stop], tiles("plain.png", 1, 2)[0])

    @pytest.mark.parametrize("suffix", ["webp", "gif"])
    def test_animation_goes_there_and_back(self, draw, suffix):
        draw(output=f"walk.{suffix}", interpolate="classes", steps=4, samples_per_class=1, classes=["0", "1"])
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
            draw(output="walk.png", interpolate="classes", steps=4, samples_per_class=1, classes=["0", "1"])
            np.testing.assert_array_equal(frames[0][16:-16:8, 16:-16:8], tiles("walk.png", 1, 4)[0, 0])

    def test_unconditional_run_walks_in_z_alone(self, draw, unconditional):
        draw(unconditional, interpolate="z", output="walk.png")
        tiles("walk.png", 1, 8)
        with pytest.raises(UserError, match="no classes to walk between: use --interpolate=z"):
            draw(unconditional, interpolate="classes")


class SweepTest:
    def test_rows_are_the_plain_samples_under_their_bounds(self, generator, draw):
        rows = walks.sweep_truncation(generator, CONFIG, [0, 2], 2, [0.0, 0.5], seed=6)
        for row, bound in zip(rows, (0.0, 0.5), strict=True):
            draw(output="plain.png", samples_per_class=2, classes=["0", "2"], sample_seed=6, truncation=bound)
            np.testing.assert_array_equal(pixels.to_uint8(row).reshape(2, 2, 32, 32, 3), tiles("plain.png", 2, 2))

    def test_bounds_keep_each_sample_recognisable(self):
        """The quantiles of z stay: signs and order of the components, and a wide bound changes next to nothing."""
        free = sampling.draw_z(tf.range(50), 16, 0).numpy()
        tight = sampling.draw_z(tf.range(50), 16, 0, 0.5).numpy()
        np.testing.assert_array_equal(np.sign(tight), np.sign(free))
        np.testing.assert_array_equal(np.argsort(tight, axis=None), np.argsort(free, axis=None))
        np.testing.assert_allclose(sampling.draw_z(tf.range(50), 16, 0, 6.0).numpy(), free, atol=1e-4)

    def test_sheet_holds_the_images(self, draw):
        draw(output="sweep.png", truncation_sweep=["0", "0.5"], samples_per_class=2, classes=["1"])
        draw(output="plain.png", samples_per_class=2, classes=["1"])
        sheet = read("sweep.png")
        for image in tiles("plain.png", 1, 2)[0]:
            large = image.repeat(4, 0).repeat(4, 1)
            lefts = range(sheet.shape[1] - 128 + 1)
            assert any((sheet[6:134, left : left + 128] == large).all() for left in lefts)


class NeighboursTest:
    @pytest.fixture(scope="class")
    def source(self):
        made = faces.FacesSource(32)
        made.num_examples = 200
        return made

    def test_sheet_shows_them_beside_the_samples(self, draw, monkeypatch, source):
        monkeypatch.setattr(modes.data, "open_source", lambda config: source)
        assert "nearest 2 of 200 training images to 6 samples" in draw(neighbours=2, output="near.png")
        assert read("near.png").shape[1] > 5 * 128
        with pytest.raises(UserError, match="--neighbours=201, but the dataset has 200 images"):
            draw(neighbours=201)


class ManyTest:
    def test_npz_holds_the_images_of_the_folder(self, draw):
        """More than one batch, the last one partial; both are those of sagan-evaluate: number n is of class n mod 3."""
        draw(num_images=70, output="many.npz", sample_seed=2)
        draw(num_images=70, output="many", sample_seed=2)
        with np.load("many.npz") as file:
            images, labels = file["images"], file["labels"]
        assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (70, 32, 32, 3), np.int32)
        np.testing.assert_array_equal(labels, np.arange(70) % 3)
        names = sorted(os.listdir("many"))
        assert names[:2] == ["0000000_class0000.png", "0000001_class0001.png"]
        np.testing.assert_array_equal(np.stack([read(f"many/{name}") for name in names]), images)

    def test_images_are_those_of_the_generator(self, draw, generator):
        draw(num_images=5, output="many.npz", sample_seed=2, truncation=1.0, classes=["2", "1"])
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
            [np.concatenate(each) for each in zip(*stream(sampler(model, CONFIG), [0, 1, 2], 150, where), strict=True)]
            for model, where in ((generator, None), (copy, strategy))
        )
        np.testing.assert_array_equal(alone[1], shared[1])
        assert np.abs(np.int64(alone[0]) - shared[0]).max() <= 1

    def test_failure_leaves_no_half_file(self, tmp_path):
        def batches():
            yield np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32)
            raise RuntimeError("lost")

        with pytest.raises(RuntimeError):
            bulk.write_npz(str(tmp_path / "x.npz"), batches(), 4)
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
    def test_one_sentence(self, draw, values, text):
        with pytest.raises(UserError, match=text) as error:
            draw(**values)
        assert "\n" not in str(error.value)
        assert os.listdir() == []

    def test_folder_in_use(self, draw):
        os.mkdir("old")
        open("old/a.png", "w").close()
        with pytest.raises(UserError, match="old is not empty"):
            draw(num_images=2, output="old")

    @pytest.mark.parametrize("values", [{}, {"interpolate": "z"}, {"num_images": 3, "output": "file/x.npz"}])
    def test_unwritable_output(self, draw, values):
        open("file", "w").close()
        with pytest.raises(UserError, match="cannot be written"):
            draw(**{"output": "file/x.png"} | values)


class CommandTest:
    def test_flags_become_files_or_a_sentence(self, trained, tmp_path):
        """Real processes, side by side."""
        command = [sys.executable, "-m", "sagan_tf.commands.sample", f"--model_dir={trained.directory}"]
        options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        asked = ["--interpolate=z", "--steps=3", "--classes=2,0", "--sample_seed=4", "--output=walk.png"], ["--truncation_sweep=1"]
        drawn, refused = (subprocess.Popen([*command, *flags], **options) for flags in asked)
        out, error = drawn.communicate(timeout=240)
        assert (drawn.returncode, out) == (0, "2 walks of 3 images, one per row, in walk.png\n"), error
        same = str(tmp_path / "same.png")
        modes.draw(trained, modes.Request(output=same, interpolate="z", steps=3, classes=["2", "0"], sample_seed=4))
        np.testing.assert_array_equal(read(tmp_path / "walk.png"), read(same))
        _, error = refused.communicate(timeout=240)
        assert refused.returncode == 1
        assert error.startswith("error: --output is missing: name a .png file for a grid")
