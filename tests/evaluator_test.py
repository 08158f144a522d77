"""Measuring: what moves the metrics, what is cached, recorded, and refused."""

import dataclasses
import errno
import json
import os

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf

from sagan_tf import networks, sampling
from sagan_tf.config import Config
from sagan_tf.data import faces
from sagan_tf.export import saved_model
from sagan_tf.metrics import classifiers, scores, statistics
from sagan_tf.metrics.evaluator import Evaluator, Protocol
from sagan_tf.runs.run import Run
from sagan_tf.sampling import Draws, Sampler

COUNT = 600
CONFIG = Config(image_size=32, num_classes=6, attention_resolution=16, gf_dim=2, df_dim=2, z_dim=4)


@pytest.fixture(scope="module")
def classifier():
    return classifiers.load("faces")


def make_source(count=COUNT, seed=0):
    made = faces.FacesSource(32, seed=seed)
    made.num_examples = count
    return made


@pytest.fixture(scope="module")
def source():
    return make_source()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("statistics"))


def more_images(count=COUNT, first=50_000):
    """Real images that are not among the source's."""
    examples = faces.FacesSource(32).examples(tf.range(first, first + count, dtype=tf.int64))
    return examples["images"].numpy(), examples["labels"].numpy()


def showing(pictures, num_classes=6, seed=0, **options):
    """Returns the sampler of a generator that draws these pictures, one after the other."""
    pictures = tf.constant(pictures, tf.float32)

    def draw(numbers, labels):
        return tf.gather(pictures, numbers % len(pictures))

    return Sampler(draw, num_classes, dataclasses.asdict(Draws(seed)), **options)


@pytest.fixture(scope="module")
def measure(classifier, source, cache):
    def call(pictures):
        protocol = Protocol(num_samples=len(pictures), batch_size=100, manifold=False)
        return Evaluator(source, classifier, protocol, cache).measure(showing(pictures)).values

    return call


class SanityTest:
    def test_real_images_are_near_real_images(self, measure):
        values = measure(more_images()[0])
        assert values["fid"] < 3.0
        assert values["inception_score"] == pytest.approx(6.0, abs=0.05)
        assert values["inception_score_real"] == pytest.approx(6.0, abs=0.05)

    def test_noise_raises_fid_step_by_step(self, measure):
        pictures, rng = more_images()[0], np.random.default_rng(0)
        noise = rng.standard_normal(pictures.shape).astype(np.float32)
        distances = [measure(pictures + strength * noise)["fid"] for strength in (0.0, 0.3, 0.6, 1.0)]
        assert distances == sorted(distances)
        assert distances[-1] > 5 * distances[0]

    def test_blur_raises_fid_step_by_step(self, measure):
        pictures = more_images()[0]
        distances = [measure(scipy.ndimage.gaussian_filter(pictures, (0, s, s, 0)))["fid"] for s in (0.0, 1.0, 2.0, 3.0)]
        assert distances == sorted(distances)

    def test_dropped_classes_raise_fid_and_lower_the_score(self, measure):
        pictures, labels = more_images(6 * COUNT)
        values = [measure(pictures[labels < kept][:COUNT]) for kept in (6, 4, 2, 1)]
        assert [v["fid"] for v in values] == sorted(v["fid"] for v in values)
        assert [v["inception_score"] for v in values] == sorted((v["inception_score"] for v in values), reverse=True)

    def test_eyes_that_differ_raise_fid(self, measure):
        pictures = more_images()[0]
        mixed = np.concatenate([pictures[:, :, :16], np.roll(pictures, 6, axis=0)[:, :, 16:]], axis=2)
        assert measure(mixed)["fid"] > 3 * measure(pictures)["fid"]


class IntraFidTest:
    def sampler(self, shift):
        """A perfect generator, or one that gives the next class's images for a label."""

        def draw(numbers, labels):
            return faces.render(faces.traits(numbers + 90_000, 0), (labels + shift) % 6, 32)

        return Sampler(draw, 6, {})

    @pytest.fixture(scope="class")
    def evaluator(self, classifier, source, cache):
        return Evaluator(source, classifier, Protocol(num_samples=COUNT, intra_fid_samples=100, manifold=False), cache)

    def test_swapped_labels_are_seen_by_intra_fid_alone(self, evaluator, tmp_path):
        right, swapped = (evaluator.measure(self.sampler(shift), str(tmp_path / f"{shift}.json")).values for shift in (0, 1))
        assert swapped["intra_fid"] > 3 * right["intra_fid"]
        assert swapped["fid"] < 1.5 * right["fid"]

    def test_interrupted_call_goes_on_class_by_class(self, evaluator, tmp_path):
        progress = tmp_path / "progress.json"
        whole = evaluator.intra_fid(self.sampler(0), str(progress))
        state = json.loads(progress.read_text())
        for label in ("3", "4", "5"):
            del state["fid"][label]
        state["fid"]["0"] += 600.0  # Taken over as it stands: done classes are not computed again.
        progress.write_text(json.dumps(state))
        resumed = evaluator.intra_fid(self.sampler(0), str(progress))
        assert resumed["intra_fid"] == pytest.approx(whole["intra_fid"] + 100.0)

    @pytest.mark.parametrize("left", ['{"key": ', "[]", '{"fid": {"0": 1}}'])
    def test_damaged_progress_stops_nothing(self, evaluator, tmp_path, left):
        (tmp_path / "progress.json").write_text(left)
        assert evaluator.intra_fid(self.sampler(0), str(tmp_path / "progress.json")) == evaluator.intra_fid(self.sampler(0))


class CacheTest:
    def statistics(self, source, classifier, cache, count=100):
        return statistics.real_statistics(source, classifier, statistics.key_of(source, classifier, count), str(cache))

    def test_is_used_and_a_damaged_one_is_made_again(self, classifier, source, tmp_path):
        first = self.statistics(source, classifier, tmp_path, 200)
        (name,) = os.listdir(tmp_path)
        counted = make_source()
        calls, examples = [], counted.examples
        counted.examples = lambda indices: calls.append(len(indices)) or examples(indices)
        again = self.statistics(counted, classifier, tmp_path, 200)
        assert calls == [32]  # Only the probe of the key.
        np.testing.assert_array_equal(first.moments.covariance, again.moments.covariance)
        (tmp_path / name).write_bytes(b"not an archive")
        remade = self.statistics(source, classifier, tmp_path, 200)
        np.testing.assert_allclose(remade.moments.covariance, first.moments.covariance, rtol=1e-12)

    def test_that_cannot_be_written_costs_no_result(self, classifier, source, tmp_path, caplog):
        (tmp_path / "file").touch()
        assert self.statistics(source, classifier, tmp_path / "file" / "cache").moments.count == 100
        assert "cannot be kept" in caplog.text

    def test_that_fills_the_disk_leaves_no_part_behind(self, tmp_path, monkeypatch, caplog):
        def full(file, **_):
            file.write(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(statistics.np, "savez", full)
        statistics._write_cache(str(tmp_path), "real", {}, {"values": np.zeros(3)})
        assert not os.listdir(tmp_path)
        assert "No space left on device" in caplog.text

    def test_other_images_have_another_key(self, classifier, source, tmp_path):
        for images, count in ((source, 100), (make_source(seed=5), 100), (source, 101)):
            self.statistics(images, classifier, tmp_path, count)
        assert len(os.listdir(tmp_path)) == 3


class RecordTest:
    def test_holds_values_protocol_and_warnings(self, classifier, source, cache, tmp_path):
        evaluator = Evaluator(source, classifier, Protocol(num_samples=50), cache)
        record = evaluator.measure(showing(more_images(50)[0], seed=3, step=7))
        expected = {"fid", "kid", "inception_score", "inception_score_10_splits", "precision", "recall", "density", "coverage"}
        assert expected <= set(record.values)
        for key in ("classifier_sha256", "resize", "num_samples", "seed", "batch_norm", "real_statistics", "versions"):
            assert key in record.protocol
        assert any("covariance is singular" in warning for warning in record.warnings)
        run = Run(str(tmp_path), CONFIG)
        run.add(record)
        run.add(dataclasses.replace(record, step=9))
        assert [each.step for each in run.records] == [7, 9]
        assert run.records[0] == record
        assert "fid" in str(record)
        assert "note: 50 generated images" in str(record)
        assert "; moving batch norm; truncation none; seed 3)" in str(record)

    def test_says_how_many_show_the_class_that_was_asked_for(self, classifier, source, cache):
        # Samples of the classes 0 and 1 show the next class from number 30 on, those of class 5 always.
        in_turn = list(enumerate([*range(6)] * 10))
        wrong = [label + (label == 5 or (label < 2 and number >= 30)) for number, label in in_turn]
        images, labels = more_images(120)
        pictures = np.stack([images[labels == label % 6][number // 6] for number, label in enumerate(wrong)])
        evaluator = Evaluator(source, classifier, Protocol(num_samples=60, manifold=False), cache)
        values = evaluator.measure(showing(pictures)).values
        assert values["class_accuracy"] == pytest.approx(40 / 60)
        assert values["class_accuracy_worst_class"] == 0.0

    def test_class_accuracy_is_left_out_where_classes_are_others(self, classifier, source, cache):
        pictures, protocol = more_images(60)[0], Protocol(num_samples=60, manifold=False)
        others = make_source(100)
        others.class_names = ("a", "b", "c", "d", "e", "f")
        for real, generated in ((others, showing(pictures)), (source, showing(pictures, num_classes=0))):
            assert "class_accuracy" not in Evaluator(real, classifier, protocol).measure(generated).values

    def test_too_few_images_for_neighbours_leave_those_metrics_out(self, classifier, source, cache):
        evaluator = Evaluator(source, classifier, Protocol(num_samples=scores.NEIGHBOURS), cache)
        record = evaluator.measure(showing(more_images(scores.NEIGHBOURS)[0]))
        accuracy = {"class_accuracy", "class_accuracy_worst_class"}
        assert set(record.values) == {"fid", "inception_score", "inception_score_real"} | accuracy
        assert any("need more than 5 images" in warning for warning in record.warnings)

    def test_labels_of_unlabelled_images_are_not_looked_at(self, classifier):
        unlabelled = make_source(100)
        examples = unlabelled.examples
        unlabelled.examples = lambda indices: {**examples(indices), "labels": -tf.ones(len(indices), tf.int32)}
        evaluator = Evaluator(unlabelled, classifier, Protocol(num_samples=50, manifold=False))
        record = evaluator.measure(showing(more_images(50)[0], num_classes=0))
        assert record.values["fid"] > 0
        assert not any("uniform over classes" in warning for warning in record.warnings)

    def test_classes_that_do_not_fit_are_noted(self, classifier):
        few = make_source(64)
        few.num_classes, examples = 8, few.examples
        few.examples = lambda indices: {**examples(indices), "labels": tf.cast(indices >= 60, tf.int32) * 7}
        evaluator = Evaluator(few, classifier, Protocol(num_samples=50, manifold=False))
        warnings = evaluator.measure(showing(more_images(50)[0], num_classes=8)).warnings
        assert any("6 classes apart, the dataset has 8" in warning for warning in warnings)
        assert any("not uniform over classes (0 to 60)" in warning for warning in warnings)


class SampledTest:
    @pytest.fixture(scope="class")
    def generator(self):
        keras.utils.set_random_seed(0)
        return networks.generator(CONFIG)

    def images(self, sampler, count=20, batch_size=8, strategy=None):
        """The images themselves, by a classifier that returns its input."""
        mirror = classifiers.Classifier("mirror", lambda images: (images, images), "", "")
        evaluator = Evaluator(None, mirror, Protocol(batch_size=batch_size), strategy=strategy)
        return np.concatenate([logits.numpy() for logits, _ in evaluator._drawn(sampler, count)])

    def test_samples_do_not_depend_on_the_batch_size(self, generator):
        sampler = sampling.sampler(generator, CONFIG, Draws(seed=1))
        np.testing.assert_allclose(self.images(sampler), self.images(sampler, batch_size=5), atol=1e-6)
        other = sampling.sampler(generator, CONFIG, Draws(seed=2))
        assert np.abs(self.images(sampler) - self.images(other)).max() > 1e-3

    def test_replicas_share_the_work_in_order(self, generator):
        strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            copy = networks.generator(CONFIG)
            copy.set_weights(generator.get_weights())
        sampler = sampling.sampler(copy, CONFIG, Draws(seed=1))
        alone = self.images(sampling.sampler(generator, CONFIG, Draws(seed=1)))
        np.testing.assert_allclose(self.images(sampler, batch_size=3, strategy=strategy), alone, atol=1e-6)

    def test_batch_statistics_leave_the_generator_alone(self, generator):
        before = generator.get_weights()
        batch = self.images(sampling.sampler(generator, CONFIG, Draws(batch_norm="batch")))
        moving = self.images(sampling.sampler(generator, CONFIG, Draws()))
        assert np.abs(batch - moving).max() > 1e-3
        for value, now in zip(before, generator.get_weights(), strict=True):
            np.testing.assert_array_equal(value, now)

    def test_truncation_bounds_z(self):
        z = sampling.draw_z(tf.range(500, dtype=tf.int64), 16, 0, 0.7).numpy()
        assert 0.69 < np.abs(z).max() <= 0.7
        # The standard deviation of a normal distribution cut at +-0.7.
        expected = np.sqrt(1 - 2 * 0.7 * scipy.stats.norm.pdf(0.7) / (2 * scipy.stats.norm.cdf(0.7) - 1))
        assert z.std() == pytest.approx(expected, rel=0.02)

    def test_saved_model_gives_the_same_images(self, generator, tmp_path):
        saved_model.export(CONFIG, generator, str(tmp_path / "out"))
        exported = saved_model.load(str(tmp_path / "out"))
        assert (exported.image_size, exported.num_classes) == (32, 6)
        sampler = exported.sampler(Draws(seed=1))
        assert sampler.facts["generated_by"] == str(tmp_path / "out")
        expected = self.images(sampling.sampler(generator, CONFIG, Draws(seed=1)))
        np.testing.assert_allclose(self.images(sampler), expected, atol=5e-6)
