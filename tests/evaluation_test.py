"""The protocol around the metrics: what moves them, what is cached, recorded, and refused."""

import errno
import json
import os
from unittest import mock

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from PIL import Image

from sagan_tf import networks, pixels, sampling
from sagan_tf.commands import evaluate, export
from sagan_tf.config import Config
from sagan_tf.data import twins
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers, evaluation, scores
from sagan_tf.metrics.evaluation import Protocol
from sagan_tf.runs import history
from sagan_tf.runs.checkpoints import Checkpoints

COUNT = 600
CONFIG = Config(dataset="twins", image_size=32, num_classes=6, attention_resolution=16, gf_dim=2, df_dim=2, z_dim=4)


@pytest.fixture(scope="module")
def embedded():
    return classifiers.load("embedded")


@pytest.fixture(scope="module")
def source():
    made = twins.TwinsSource(32)
    made.num_examples = COUNT
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("statistics"))


def more_images(count=COUNT, first=50_000):
    """Real images that are not among the source's."""
    examples = twins.TwinsSource(32).examples(tf.range(first, first + count, dtype=tf.int64))
    return examples["images"].numpy(), examples["labels"].numpy()


@pytest.fixture(scope="module")
def measure(embedded, source, cache):
    def call(pictures, **options):
        protocol = Protocol(num_samples=len(pictures), manifold=False, **options)

        def batches():
            return (embedded.run(tf.constant(pictures[i : i + 100], tf.float32)) for i in range(0, len(pictures), 100))

        return evaluation.evaluate(batches(), source, CONFIG, embedded, protocol, cache)["values"]

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

    def test_disagreeing_twins_raise_fid(self, measure):
        pictures = more_images()[0]
        mixed = np.concatenate([pictures[:, :16], np.roll(pictures, 6, axis=0)[:, 16:]], axis=1)
        assert measure(mixed)["fid"] > 3 * measure(pictures)["fid"]


class IntraFidTest:
    def sampler(self, shift):
        """A perfect generator, or one that gives the next class's images for a label."""
        real = twins.TwinsSource(32)

        def sample(numbers, labels):
            bits = twins.patterns(numbers + 90_000, 0, 3)
            return twins.render(bits, (labels + shift) % real.num_classes, 32)

        return sample

    def measure(self, shift, embedded, source, cache, progress):
        protocol = Protocol(num_samples=COUNT, intra_fid_samples=100)
        return evaluation.intra_fid(self.sampler(shift), source, CONFIG, embedded, protocol, cache, str(progress))

    def test_swapped_labels_are_seen_by_intra_fid_alone(self, embedded, source, cache, tmp_path):
        right = self.measure(0, embedded, source, cache, tmp_path / "right.json")["intra_fid"]
        swapped = self.measure(1, embedded, source, cache, tmp_path / "swapped.json")["intra_fid"]
        assert swapped > 3 * right
        fids = []
        for shift in (0, 1):
            protocol = Protocol(num_samples=COUNT, manifold=False)
            outputs = evaluation.sampled_outputs(self.sampler(shift), embedded, COUNT, 6, 100)
            fids.append(evaluation.evaluate(outputs, source, CONFIG, embedded, protocol, cache)["values"]["fid"])
        assert fids[1] < 1.5 * fids[0]

    def test_interrupted_call_goes_on_class_by_class(self, embedded, source, cache, tmp_path):
        progress = tmp_path / "progress.json"
        whole = self.measure(0, embedded, source, cache, progress)
        state = json.loads(progress.read_text())
        for label in ("3", "4", "5"):
            del state["fid"][label]
        state["fid"]["0"] += 600.0  # Taken over as it stands: done classes are not computed again.
        progress.write_text(json.dumps(state))
        resumed = self.measure(0, embedded, source, cache, progress)
        assert resumed["intra_fid"] == pytest.approx(whole["intra_fid"] + 100.0)


class CacheTest:
    def test_is_used_and_a_damaged_one_is_made_again(self, embedded, source, tmp_path, caplog):
        first = evaluation.real_statistics(source, CONFIG, embedded, str(tmp_path), 200)
        (name,) = os.listdir(tmp_path)
        broken = twins.TwinsSource(32)
        broken.num_examples = COUNT
        calls = []
        examples = broken.examples
        broken.examples = lambda indices: calls.append(len(indices)) or examples(indices)
        again = evaluation.real_statistics(broken, CONFIG, embedded, str(tmp_path), 200)
        assert calls == [32]  # Only the probe of the key.
        np.testing.assert_array_equal(first.moments.covariance, again.moments.covariance)
        (tmp_path / name).write_bytes(b"not an archive")
        remade = evaluation.real_statistics(source, CONFIG, embedded, str(tmp_path), 200)
        np.testing.assert_allclose(remade.moments.covariance, first.moments.covariance, rtol=1e-12)

    def test_that_cannot_be_written_costs_no_result(self, embedded, source, tmp_path, caplog):
        (tmp_path / "file").touch()
        real = evaluation.real_statistics(source, CONFIG, embedded, str(tmp_path / "file" / "cache"), 100)
        assert real.moments.count == 100
        assert "cannot be kept" in caplog.text

    def test_that_fills_the_disk_leaves_no_part_behind(self, tmp_path, monkeypatch, caplog):
        def full(path, **_):
            with open(path, "wb") as file:
                file.write(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(evaluation.np, "savez", full)
        evaluation._write_cache(str(tmp_path / "real.npz"), {}, values=np.zeros(3))
        assert not os.listdir(tmp_path)
        assert "No space left on device" in caplog.text

    def test_other_images_have_another_key(self, embedded, source, tmp_path):
        evaluation.real_statistics(source, CONFIG, embedded, str(tmp_path), 100)
        other = twins.TwinsSource(32, seed=5)
        other.num_examples = COUNT
        evaluation.real_statistics(other, CONFIG, embedded, str(tmp_path), 100)
        evaluation.real_statistics(source, CONFIG, embedded, str(tmp_path), 101)
        assert len(os.listdir(tmp_path)) == 3


class RecordTest:
    def test_holds_values_protocol_and_warnings(self, embedded, source, cache, tmp_path):
        pictures = more_images(50)[0]
        protocol = Protocol(num_samples=50, seed=3)
        record = evaluation.evaluate(iter([embedded.run(tf.constant(pictures))]), source, CONFIG, embedded, protocol, cache)
        expected = {"fid", "kid", "inception_score", "inception_score_10_splits", "precision", "recall", "density", "coverage"}
        assert expected <= set(record["values"])
        for key in ("classifier_sha256", "resize", "num_samples", "seed", "batch_norm", "real_statistics", "versions"):
            assert key in record["protocol"]
        assert any("covariance is singular" in warning for warning in record["warnings"])
        history.append(str(tmp_path), 7, record)
        history.append(str(tmp_path), 9, record)
        assert [line["step"] for line in history.read(str(tmp_path))] == [7, 9]
        assert history.read(str(tmp_path))[0]["values"] == record["values"]
        text = evaluation.table(record)
        assert "fid" in text
        assert "note: 50 generated images" in text

    def test_too_few_images_for_neighbours_leave_those_metrics_out(self, embedded, source, cache):
        protocol = Protocol(num_samples=scores.NEIGHBOURS)
        outputs = embedded.run(tf.constant(more_images(scores.NEIGHBOURS)[0]))
        record = evaluation.evaluate(iter([outputs]), source, CONFIG, embedded, protocol, cache)
        assert set(record["values"]) == {"fid", "inception_score", "inception_score_real"}
        assert any("need more than 5 images" in warning for warning in record["warnings"])

    def test_labels_of_unlabelled_images_are_not_looked_at(self, embedded, source, tmp_path):
        unlabelled = twins.TwinsSource(32)
        unlabelled.num_examples, examples = 100, unlabelled.examples
        unlabelled.examples = lambda indices: {**examples(indices), "labels": -tf.ones(len(indices), tf.int32)}
        config, protocol = CONFIG.replace(num_classes=0), Protocol(num_samples=50, manifold=False)
        outputs = embedded.run(tf.constant(more_images(50)[0]))
        record = evaluation.evaluate(iter([outputs]), unlabelled, config, embedded, protocol, str(tmp_path))
        assert record["values"]["fid"] > 0
        assert not any("uniform over classes" in warning for warning in record["warnings"])

    def test_classifier_of_fewer_classes_is_noted(self, source, embedded, cache):
        few = twins.TwinsSource(32, num_classes=8)
        few.num_examples = 200
        real = evaluation.real_statistics(few, CONFIG, embedded, cache, 200)
        assert any(
            "6 classes apart, the dataset has 8" in w for w in evaluation.warnings_of(real, few, CONFIG, embedded, Protocol())
        )


class SampledTest:
    @pytest.fixture(scope="class")
    def generator(self):
        keras.utils.set_random_seed(0)
        return networks.generator(CONFIG)

    def images(self, sampler, count=20, batch_size=8, strategy=None):
        """The images themselves, by a classifier that returns its input."""
        mirror = classifiers.Classifier("mirror", lambda images: (images, images), "", "")
        outputs = evaluation.sampled_outputs(sampler, mirror, count, 6, batch_size, strategy=strategy)
        return np.concatenate([logits.numpy() for logits, _ in outputs])

    def test_samples_do_not_depend_on_the_batch_size(self, generator):
        sampler = evaluation.generator_sampler(generator, 4, Protocol(seed=1))
        np.testing.assert_allclose(self.images(sampler), self.images(sampler, batch_size=5), atol=1e-6)
        other = evaluation.generator_sampler(generator, 4, Protocol(seed=2))
        assert np.abs(self.images(sampler) - self.images(other)).max() > 1e-3

    def test_replicas_share_the_work_in_order(self, generator):
        strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            copy = networks.generator(CONFIG)
            copy.set_weights(generator.get_weights())
        sampler = evaluation.generator_sampler(copy, 4, Protocol(seed=1))
        alone = self.images(evaluation.generator_sampler(generator, 4, Protocol(seed=1)))
        np.testing.assert_allclose(self.images(sampler, batch_size=3, strategy=strategy), alone, atol=1e-6)

    def test_batch_statistics_leave_the_generator_alone(self, generator):
        before = generator.get_weights()
        batch = self.images(evaluation.generator_sampler(generator, 4, Protocol(batch_norm="batch")))
        moving = self.images(evaluation.generator_sampler(generator, 4, Protocol()))
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
        export.export(CONFIG, generator, str(tmp_path / "out"))
        sampler, size = evaluation.saved_model_sampler(str(tmp_path / "out"), Protocol(seed=1))
        assert size == 32
        expected = self.images(evaluation.generator_sampler(generator, 4, Protocol(seed=1)))
        np.testing.assert_allclose(self.images(sampler), expected, atol=5e-6)


class FolderTest:
    def write(self, path, sizes):
        for number, size in enumerate(sizes):
            Image.fromarray(np.full((*size, 3), number, np.uint8)).save(path / f"{number:03d}.png")

    def test_every_image_once_in_batches(self, tmp_path):
        self.write(tmp_path, [(8, 8)] * 5)
        batches = list(evaluation.folder_images(str(tmp_path), 5, 2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        values = np.sort(np.concatenate(batches)[:, 0, 0, 0])
        np.testing.assert_allclose(values, np.arange(5) / 127.5 - 1, atol=1e-6)

    def test_files_sorted_by_class_are_mixed(self, embedded, source, cache, tmp_path):
        """Ten splits of a perfect folder, a class after the other, score what one does; a tenth of it holds all classes."""
        pictures, labels = more_images()
        for number, index in enumerate(np.argsort(labels, kind="stable")):
            pixels.save_png(str(tmp_path / f"{number:04d}.png"), pixels.to_uint8(pictures[index]))
        generated = (embedded.run(batch) for batch in evaluation.folder_images(str(tmp_path), COUNT, 100))
        protocol = Protocol(num_samples=COUNT, manifold=False)
        values = evaluation.evaluate(generated, source, CONFIG, embedded, protocol, cache)["values"]
        assert values["inception_score_10_splits"] > 0.9 * values["inception_score"] > 5.0
        tenth = np.concatenate(list(evaluation.folder_images(str(tmp_path), COUNT // 10, 60)))
        seen = np.argmax(embedded.run(tf.constant(tenth))[0], axis=1)
        assert set(seen) == set(range(6))

    def test_unusable_folders_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no images"):
            list(evaluation.folder_images(str(tmp_path), 1, 1))
        self.write(tmp_path, [(8, 8), (9, 9)])
        with pytest.raises(UserError, match="holds 2 images, fewer than the 3"):
            list(evaluation.folder_images(str(tmp_path), 3, 1))
        with pytest.raises(UserError, match="9x9; all images must be square, of one size"):
            list(evaluation.folder_images(str(tmp_path), 2, 1))


class KeepTest:
    def record(self, fid, **protocol):
        return {"values": {"fid": fid}, "protocol": protocol, "warnings": []}

    def test_lowest_fid_of_each_protocol_is_kept(self, tmp_path):
        config, checkpoints = CONFIG.replace(model_dir=str(tmp_path)), Checkpoints(str(tmp_path))
        os.makedirs(checkpoints.directory)
        assert evaluate.keep(config, 1, self.record(5.0, num_samples=50_000))
        assert evaluate.keep(config, 2, self.record(9.0, num_samples=100))
        assert not evaluate.keep(config, 3, self.record(6.0, num_samples=50_000))
        assert checkpoints.pinned() == {1, 2}
        assert evaluate.keep(config, 4, self.record(4.0, num_samples=50_000))
        assert checkpoints.pinned() == {2, 4}
        assert [line["step"] for line in history.read(str(tmp_path))] == [1, 2, 3, 4]

    def test_run_that_cannot_be_written_costs_no_result(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        assert evaluate.keep(CONFIG.replace(model_dir=str(tmp_path / "file")), 1, self.record(5.0))
        assert "cannot be recorded" in caplog.text


class WatchTest:
    @pytest.fixture
    def watch(self, tmp_path, monkeypatch):
        """Watches a run that saves a checkpoint, keeping two, each time that the watcher would wait."""
        checkpoints = Checkpoints(str(tmp_path), keep=2)

        def call(fids, train_steps, **options):
            steps, seen = iter(range(1, train_steps + 1)), {}

            def train(_=None):
                step = next(steps)
                checkpoints.save(step, {"step": tf.Variable(step)})
                checkpoints.wait()

            def evaluate_step(step):
                for _ in range(options.get("steps_meanwhile", 0)):
                    if step < train_steps:
                        train()
                assert step in checkpoints.steps()
                best = all(fids[step] < other for other in seen.values())
                seen[step] = fids[step]
                return best

            if options.get("read_only"):
                monkeypatch.setattr(checkpoints, "pin", mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
            monkeypatch.setattr(evaluate.time, "sleep", train)
            evaluate.watch(checkpoints, train_steps, options.get("done", set()), evaluate_step, options.get("patience", 0))
            return list(seen)

        return call

    def test_ends_with_the_last_step(self, watch):
        assert watch({1: 3.0, 2: 4.0, 3: 5.0}, 3) == [1, 2, 3]

    def test_refuses_a_run_that_cannot_be_written(self, watch):
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
            watch({1: 3.0}, 1, read_only=True)

    def test_patience_counts_evaluations_in_a_row_without_a_better_fid(self, watch, capsys):
        fids = dict(enumerate([9.0, 8.0, 8.5, 7.0, 7.5, 7.4, 7.3, 1.0], start=1))
        assert watch(fids, 8, patience=3) == [1, 2, 3, 4, 5, 6, 7]
        assert "No better FID in 3 evaluations" in capsys.readouterr().out

    def test_passes_over_what_it_cannot_keep_up_with(self, watch):
        """Four checkpoints come during each evaluation; the one being evaluated is not removed meanwhile."""
        assert watch(dict.fromkeys(range(1, 10), 1.0), 9, steps_meanwhile=4) == [1, 5, 9]

    def test_steps_already_evaluated_are_left_alone(self, watch):
        assert watch({2: 1.0, 3: 1.0}, 3, done={1}) == [2, 3]
