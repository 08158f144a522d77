"""Images of a folder, an .npz file or an array: each the same to measure, and refused in a sentence."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import files, metrics, pixels
from sagan_tf.data import faces
from sagan_tf.data.arrays import ArraySource
from sagan_tf.errors import UserError
from sagan_tf.metrics import Evaluator, Images, Protocol, classifiers, compare, statistics

COUNT = 120


@pytest.fixture(scope="module")
def classifier():
    return classifiers.load("faces")


def real_images(first, count=COUNT):
    examples = faces.FacesSource(32).examples(tf.range(first, first + count, dtype=tf.int64))
    return pixels.to_uint8(examples["images"]), examples["labels"].numpy()


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two sets of images, a class after the other, in every form: `{name: (a, b)}`."""
    root = tmp_path_factory.mktemp("sides")
    forms = {"array": [], "npz": [], "flat": [], "classes": []}
    for side, first in (("a", 0), ("b", 50_000)):
        images, labels = real_images(first)
        order = np.argsort(labels, kind="stable")
        images, labels = images[order], labels[order]
        if side == "a":
            images = images // 3 * 2
        np.savez(root / f"{side}.npz", images=images, labels=labels)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            files.write(str(root / f"{side}-flat" / f"{number:04d}.png"), pixels.png(image))
            files.write(str(root / f"{side}-classes" / str(label) / f"{number:04d}.png"), pixels.png(image))
        for name, value in (("array", images), ("npz", f"{root}/{side}.npz")):
            forms[name].append(value)
        for name in ("flat", "classes"):
            forms[name].append(str(root / f"{side}-{name}"))
    return forms


@pytest.fixture(scope="module")
def expected(sides, classifier):
    return compare(*sides["array"], classifier)


def write(path, sizes):
    for number, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), number, np.uint8)).save(path / f"{number:03d}.png")


class CompareTest:
    @pytest.mark.parametrize("forms", [("npz", "npz"), ("flat", "flat"), ("classes", "array")])
    def test_every_form_gives_the_same_numbers(self, sides, expected, classifier, forms):
        record = compare(sides[forms[0]][0], sides[forms[1]][1], classifier)
        assert record.values == expected.values
        named = {"dataset", "generated_by"}
        assert {k: v for k, v in record.protocol.items() if k not in named} == {
            k: v for k, v in expected.protocol.items() if k not in named
        }
        assert record.protocol["generated_by"] == sides[forms[0]][0]
        assert {"fid", "kid", "precision", "inception_score", "inception_score_10_splits"} <= set(record.values)
        assert record.values["fid"] > 3.0

    def test_is_what_an_evaluator_measures(self, sides, expected, tmp_path):
        protocol = Protocol(num_samples=COUNT, batch_size=50)
        evaluator = Evaluator(ArraySource(sides["array"][1]), classifiers.load("faces"), protocol, str(tmp_path))
        images = Images(sides["flat"][0])
        record = evaluator.measure(images)
        for name, value in expected.values.items():
            assert record.values[name] == pytest.approx(value, rel=1e-6), name
        assert record.protocol == evaluator.protocol_of(images)
        assert record.protocol["real_statistics"] == expected.protocol["real_statistics"]

    def test_protocol_says_nothing_of_draws(self, expected):
        assert not {"seed", "truncation", "batch_norm", "classes", "use_ema"} & set(expected.protocol)
        assert (expected.protocol["num_samples"], expected.protocol["real_images"]) == (COUNT, COUNT)
        assert (expected.protocol["generated_by"], expected.protocol["dataset"]) == ("an array", "an array")
        assert f"({COUNT} samples against {COUNT} images of an array; classifier faces, area_32)" in str(expected)
        assert metrics.Record.from_json(expected.to_json()) == expected

    def test_some_of_the_images_of_each_side(self, sides, classifier):
        record = compare(*sides["npz"], classifier, num_samples=50, protocol=Protocol(manifold=False, real_images=70))
        assert (record.protocol["num_samples"], record.protocol["real_images"]) == (50, 70)
        assert "kid" not in record.values

    @pytest.mark.parametrize(
        ("a", "b", "options", "text"),
        [
            ("/no/such/folder", None, {}, "/no/such/folder does not exist"),
            (None, "/no/such.npz", {}, r"/no/such.npz cannot be read as an .npz file with an array `images` \(.*No such file"),
            (np.zeros((4, 32, 32, 3), np.float32), None, {}, r"uint8 images \[N, S, S, 3\], not float32 \[4, 32, 32, 3\]"),
            (np.zeros((4, 32, 16, 3), np.uint8), None, {}, r"not uint8 \[4, 32, 16, 3\]"),
            (np.zeros((0, 32, 32, 3), np.uint8), None, {}, r"not uint8 \[0, 32, 32, 3\]"),
            (np.zeros((4, 64, 64, 3), np.uint8), None, {}, "an array are 64 pixels high, those of .* 32"),
            (np.zeros((1, 32, 32, 3), np.uint8), None, {}, "1 generated and 120 real images are too few"),
            (None, np.zeros((1, 32, 32, 3), np.uint8), {}, "120 generated and 1 real images are too few"),
            (None, None, {"num_samples": COUNT + 1}, "holds 120 images, fewer than the 121 asked for"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_in_a_sentence(self, sides, classifier, a, b, options, text):
        with pytest.raises(UserError, match=text) as error:
            compare(sides["npz"][0] if a is None else a, sides["npz"][1] if b is None else b, classifier, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [b"no archive", b""])
    def test_damaged_archive_is_named(self, classifier, tmp_path, content):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"x.npz cannot be read"):
            compare(str(tmp_path / "x.npz"), str(tmp_path / "x.npz"), classifier)
        np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
        with pytest.raises(UserError, match=r"x.npz cannot be read .*images"):
            compare(str(tmp_path / "x.npz"), str(tmp_path / "x.npz"), classifier)

    def test_from_the_shell(self, sides, expected):
        command = [sys.executable, "-m", "sagan_tf.commands.evaluate", "--classifier=faces"]
        a, b = sides["flat"]
        result = subprocess.run([*command, f"--images={a}", f"--against={b}"], capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{a}:\n")
        assert f"  fid                          {expected.values['fid']:12.5g}\n" in result.stdout
        assert f"({COUNT} samples against {COUNT} images of {b}; classifier faces" in result.stdout

    def test_importing_it_leaves_tf_gan_alone(self):
        code = "import sys; from sagan_tf.metrics import Record; assert 'sagan_tf.metrics.scores' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class ImagesTest:
    def test_every_image_once_in_batches(self, tmp_path):
        write(tmp_path, [(8, 8)] * 5)
        batches = [batch["images"] for batch in statistics.mixed(Images(str(tmp_path)).source, 5, 2)]
        assert [len(batch) for batch in batches] == [2, 2, 1]
        values = np.sort(np.concatenate(batches)[:, 0, 0, 0])
        np.testing.assert_allclose(values, np.arange(5) / 127.5 - 1, atol=1e-6)

    def test_files_sorted_by_class_are_mixed(self, classifier, tmp_path):
        """Ten splits of a perfect folder, a class after the other, score what one does; a tenth of it holds all classes."""
        images, labels = real_images(50_000, 600)
        for number, index in enumerate(np.argsort(labels, kind="stable")):
            files.write(str(tmp_path / f"{number:04d}.png"), pixels.png(images[index]))
        values = compare(str(tmp_path), real_images(0)[0], classifier, protocol=Protocol(manifold=False)).values
        assert values["inception_score_10_splits"] > 0.9 * values["inception_score"] > 5.0
        (tenth,) = statistics.mixed(Images(str(tmp_path)).source, 60, 60)
        assert set(np.argmax(classifier.run(tenth["images"])[0], axis=1)) == set(range(6))

    def test_unusable_folders_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no images"):
            Images(str(tmp_path))
        write(tmp_path, [(8, 8), (9, 9)])
        with pytest.raises(UserError, match="9x9; all images must be square, of one size"):
            list(statistics.mixed(Images(str(tmp_path)).source, 2, 1))
        write(tmp_path, [(8, 9), (8, 8)])
        with pytest.raises(UserError, match="9x8; all images must be square, of one size"):
            Images(str(tmp_path))
        (tmp_path / "000.png").write_bytes(b"no image")
        with pytest.raises(UserError, match=r"000.png cannot be read as an image .*: remove it or make it again"):
            Images(str(tmp_path))

    def test_unreadable_file_is_named_with_its_remedy(self, tmp_path, classifier):
        write(tmp_path, [(8, 8)] * 3)
        (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:40])
        with pytest.raises(UserError, match=r"001.png cannot be read as an image .*: remove it or make it again\.$"):
            compare(str(tmp_path), np.zeros((3, 8, 8, 3), np.uint8), classifier)


class ArraySourceTest:
    def test_gives_images_and_labels_by_index_in_graphs_too(self):
        images, labels = real_images(0, 10)
        source = ArraySource(images, labels)
        assert (source.num_examples, source.num_classes, source.class_names) == (10, 6, ())
        (batch,) = tf.data.Dataset.from_tensors(tf.constant([3, 1], tf.int64)).map(source.examples)
        np.testing.assert_array_equal(pixels.to_uint8(batch["images"]), images[[3, 1]])
        np.testing.assert_array_equal(batch["labels"], labels[[3, 1]])
