"""The dataset faces: two eyes that match, an expression that can be told, and the classifier that tells it."""

import hashlib
import importlib.resources

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import data
from sagan_tf.config import Config
from sagan_tf.data import faces
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers
from sagan_tf.runs import hooks


def open_faces(image_size=32, **settings):
    return data.open_source(Config(dataset="faces", image_size=image_size, attention_resolution=16, **settings))


def examples(count, first=0, **settings):
    return open_faces(**settings).examples(tf.range(first, first + count, dtype=tf.int64))


class DrawingTest:
    @pytest.mark.parametrize("size", [32, 64, 128, 256])
    def test_every_size_has_its_range_and_the_same_picture(self, size):
        images = examples(24, image_size=size)["images"].numpy()
        assert images.shape == (24, size, size, 3)
        assert images.dtype == np.float32
        assert -1 <= images.min() < -0.8 < 0.8 < images.max() <= 1
        small = images.reshape(24, 32, size // 32, 32, size // 32, 3).mean(axis=(2, 4))
        # Smaller details, ears among them, are drawn above 32 px alone.
        assert np.abs(small - examples(24)["images"]).mean() < 0.08

    def test_a_face_is_a_function_of_seed_and_index(self):
        source = open_faces(seed=3)
        images = source.examples(tf.range(40, dtype=tf.int64))["images"].numpy()
        alone = source.examples(tf.constant([17], tf.int64))["images"].numpy()
        np.testing.assert_array_equal(alone[0], images[17])
        in_graph = tf.function(source.examples)(tf.range(40, dtype=tf.int64))["images"]
        np.testing.assert_allclose(in_graph, images, atol=1e-5)
        assert np.abs(examples(40, seed=4)["images"] - images).mean(axis=(1, 2, 3)).min() > 0.02
        assert len(np.unique(images.reshape(40, -1), axis=0)) == 40

    def test_labels_take_turns(self):
        np.testing.assert_array_equal(examples(12)["labels"], list(range(6)) * 2)
        np.testing.assert_array_equal(examples(5, num_classes=2)["labels"], [0, 1, 0, 1, 0])
        source = open_faces(num_classes=0)
        assert (source.num_classes, source.class_names) == (6, ("smile", "sad", "flat", "surprised", "laugh", "smirk"))
        assert data.num_classes(source, Config(dataset="faces", num_classes=0)) == 0
        with pytest.raises(UserError, match="--num_classes=7"):
            open_faces(num_classes=7)

    def test_edges_are_smooth(self):
        """No pixel steps by more than pixels of an antialiased edge can: about half of the way from black to white."""
        images = examples(60, image_size=256)["images"].numpy()
        first, second = np.abs(np.diff(images, axis=2)), np.abs(images[:, :, 2:] - images[:, :, :-2])
        assert np.quantile(first[first > 0.5], 0.5) < 0.9 * np.quantile(second[second > 0.5], 0.5)


class TraitsTest:
    def test_each_is_uniform_and_on_its_own(self):
        drawn = np.stack(list(faces.traits(tf.range(4000, dtype=tf.int64), 0).values()))
        assert 0 <= drawn.min() < 0.01 < 0.99 < drawn.max() < 1
        # Standard errors: 0.0046 of a mean of uniform numbers, 0.016 of a correlation.
        assert np.abs(drawn.mean(axis=1) - 0.5).max() < 0.025
        assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.08
        serial = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in drawn]
        assert np.abs(serial).max() < 0.08

    def test_numbers_are_those_of_splitmix(self):
        """The finaliser, in Python's integers."""

        def mix(number):
            number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
            return number ^ number >> 31

        numbers = [0, 1, 2**63 + 12345, 2**64 - 1]
        np.testing.assert_array_equal(faces._mix(tf.constant(numbers, tf.uint64)), np.array([mix(n) for n in numbers], np.uint64))

    def test_irises_have_the_hue_that_is_told(self):
        indices = tf.range(200, dtype=tf.int64)
        hues = np.interp(faces.iris_hues(indices, 0), np.linspace(0, 1, len(faces.HUES)), faces.HUES)
        left, _ = faces.eyes(open_faces(image_size=256).examples(indices)["images"])
        colours = tf.image.rgb_to_hsv((left + 1) / 2).numpy()  # [N, P, HSV]
        for hue, (found, saturation, value) in zip(hues, colours.transpose(0, 2, 1), strict=True):
            error = np.abs(found[(saturation > 0.6) & (value > 0.4)] - hue)
            assert np.median(np.minimum(error, 1 - error)) < 0.01


class AgreementTest:
    @pytest.mark.parametrize("size", [32, 64, 128, 256])
    def test_eyes_of_the_data_are_equal_to_the_last_bit(self, size):
        batch = examples(48, image_size=size)
        left, right = faces.eyes(batch["images"])
        np.testing.assert_array_equal(left, right)
        assert left.shape[1] > 0.015 * size**2
        assert faces.agreement(batch["images"], batch["labels"]) == 1.0

    def test_mirrored_faces_agree(self):
        batch = examples(48)
        assert faces.agreement(batch["images"][:, :, ::-1], batch["labels"]) == 1.0

    def test_eyes_of_other_faces_do_not_agree(self):
        batch = examples(1200)
        pictures = batch["images"].numpy()
        mixed = np.concatenate([pictures[:, :, :16], np.roll(pictures, 6, axis=0)[:, :, 16:]], axis=2)
        assert abs(faces.agreement(mixed, batch["labels"])) < 0.05

    def test_skin_has_no_part_in_it(self):
        """Faces alike in everything else, each with two eyes of its own, are at chance."""
        indices = tf.range(1200, dtype=tf.int64)
        labels, drawn, other = faces.labels(indices, 6), faces.traits(indices, 0), faces.traits(indices, 1)
        second = {name: other[name] if name in faces.EYE_TRAITS else values for name, values in drawn.items()}
        left, right = (faces.render(each, labels, 32).numpy() for each in (drawn, second))
        np.testing.assert_array_equal(left[:, :9], right[:, :9])
        mixed = np.concatenate([left[:, :, :16], right[:, :, 16:]], axis=2)
        assert abs(faces.agreement(mixed, labels)) < 0.05

    def test_images_without_variety_score_zero(self):
        image = examples(1)["images"].numpy()
        assert faces.agreement(np.repeat(image, 20, axis=0)) == 0.0

    def test_score_against_all_pairs_by_hand(self):
        pictures = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 3))
        left, right = faces.eyes(pictures)
        own = np.mean([np.abs(left[i] - right[i]).mean() for i in range(5)])
        others = np.mean([np.abs(left[i] - right[j]).mean() for i in range(5) for j in range(5) if i != j])
        np.testing.assert_allclose(faces.agreement(pictures), 1 - own / others, rtol=1e-12)


class ClassifierTest:
    def test_tells_expressions_and_matching_eyes(self):
        batch = examples(3000, first=50_000, seed=99)
        logits, features = classifiers.load("faces").run(batch["images"])
        assert np.mean(np.argmax(logits, axis=1) == batch["labels"]) > 0.99
        assert features.shape == (3000, 64)
        images = batch["images"][:300]
        mixed = tf.concat([images[:, :, :16], tf.roll(images, 6, axis=0)[:, :, 16:]], axis=2)
        _, others = classifiers.load("faces").run(mixed)
        assert np.median(np.linalg.norm(features[:300] - others, axis=1)) > 1.0

    @pytest.mark.parametrize("size", [64, 128])
    def test_larger_images_are_told_too(self, size):
        batch = examples(600, first=50_000, seed=99, image_size=size)
        logits, _ = classifiers.load("faces").run(batch["images"])
        assert np.mean(np.argmax(logits, axis=1) == batch["labels"]) > 0.98
        means = batch["images"].numpy().reshape(600, 32, size // 32, 32, size // 32, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(classifiers.load("faces").run(tf.constant(means))[0], logits, atol=1e-3)

    def test_ships_in_under_a_megabyte(self):
        path = importlib.resources.files("sagan_tf") / "assets" / classifiers.FACES_FILE
        assert len(path.read_bytes()) < 1_000_000
        assert classifiers.load("faces").protocol() == {
            **{"classifier": "faces", "resize": "area_32"},
            "classifier_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        }


class ScoreOfARunTest:
    @pytest.mark.parametrize(("keep", "score"), [(1.0, 1.0), (0.0, 0.0)])
    def test_perfect_eyes_score_one_and_one_face_for_all_scores_zero(self, keep, score):
        """The score that a training logs, of a generator that draws the data, or the same face for every z."""

        def generator(inputs, training):
            z, labels = inputs
            drawn = {name: (tf.math.erf(z[:, i]) + 1) / 2 * keep for i, name in enumerate(faces.TRAITS)}
            return faces.render(drawn, labels, 32)

        config = Config(dataset="faces", image_size=32, num_classes=6, attention_resolution=8, z_dim=len(faces.TRAITS))
        assert hooks.agreement(generator, config) == score
