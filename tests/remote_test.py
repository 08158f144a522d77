"""Runs on file systems of TensorFlow: everything a run does, on the one that TensorFlow keeps in memory (`ram://`)."""

import functools
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.framework import config as determinism

from sagan_tf import files, metrics, pixels
from sagan_tf.attention import outputs
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.export import formats, saved_model
from sagan_tf.gallery import modes
from sagan_tf.metrics import statistics
from sagan_tf.report import page
from sagan_tf.runs import evaluation, hooks, loop, reference_checkpoint
from sagan_tf.runs.run import Run, load_run
from sagan_tf.sampling import Draws
from sagan_tf.training import METRICS, Trainer

TINY = {"image_size": 32, "gf_dim": 2, "df_dim": 2, "z_dim": 4, "attention_resolution": 8, "batch_size": 4, "ema_decay": 0.5}
CONFIG = Config(train_steps=2, save_checkpoint_steps=1, steps_per_loop=1, keep_checkpoints=2, **TINY)
PREFIX = os.path.join(os.path.dirname(__file__), "golden", "sagan_ckpt", "model.ckpt-3")


class Killed(BaseException):
    """The end of a process, as its last write sees it."""


class Writes:
    """Counts the writes to remote files; from the n-th on there are none, as if the process had been killed before it."""

    def __init__(self, monkeypatch):
        self.count, self.last = 0, float("inf")
        for module, names in ((tf.io.gfile, ("copy", "makedirs", "remove", "rename", "rmtree")), (tf.raw_ops, ("SaveV2",))):
            for name in names:
                monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function):
        def call(*args, **options):
            self.count += 1
            if self.count > self.last:
                raise Killed
            return function(*args, **options)

        return call


class ChaoticTrainer:
    """Stands in for the trainer: a step costs nothing, and each depends on every bit of the one before."""

    sampled_generator = discriminator = ema_generator = None

    def __init__(self, config, strategy):
        self.config, self.strategy, self.stop = config, strategy, tf.Variable(False)
        self.step, self.rollbacks = (tf.Variable(0, dtype=tf.int64) for _ in range(2))
        self.weights = tf.Variable(tf.range(100, dtype=tf.float64))

    def state(self):
        return {"step": self.step, "rollbacks": self.rollbacks, "weights": self.weights}

    def train(self, batches, steps):
        for _ in range(int(steps)):
            self.step.assign_add(1)
            self.weights.assign(tf.cos(1e6 * self.weights + tf.cast(self.step, tf.float64)))
        return tf.zeros([int(steps), len(METRICS)]), tf.constant(False)


class Keeping(hooks.Hook):
    """Writes a picture and pins the checkpoint, as `SampleGrids` does."""

    def __call__(self, step, metrics):
        self.training.run.save_grid(step, np.full([2, 2, 3], step, np.uint8))
        self.training.run.pin_healthy()

    def missed(self, step):
        return True


@pytest.fixture(autouse=True, scope="module")
def nothing_local(tmp_path_factory):
    """No test leaves a file in the working directory, such as a folder called `ram:`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory := tmp_path_factory.mktemp("empty"))
        yield
        assert os.listdir(directory) == []


@pytest.fixture(scope="module")
def trainer():
    """Gives one trainer to all trainings, each time as it is at the start; it runs its few steps as they stand, untraced."""
    made = []

    def make(config, strategy):
        if not made:
            trainer = Trainer(config, strategy)
            trainer.train = functools.partial(Trainer.train.python_function, trainer)
            made.extend((trainer, {name: np.array(variable) for name, variable in trainer.state().items()}))
        trainer, start = made
        for name, variable in trainer.state().items():
            variable.assign(start[name])
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Trainer", make)
        tf.config.experimental.enable_op_determinism()
        yield
        determinism.disable_op_determinism()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings, with a folder of eight images of each of three classes."""
    directory = tmp_path_factory.mktemp("images")
    for number, image in enumerate(np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8)):
        files.write(f"{directory}/{number % 3}/{number}.png", pixels.png(image))
    return CONFIG.replace(dataset=f"folder:{directory}")


@pytest.fixture(scope="module")
def trained(config, trainer):
    """A run of two steps that nothing interrupted, its scheme in capitals; it reads its networks once."""
    loop.train(config.replace(model_dir="RAM://bucket/runs/whole/"))
    run = load_run("ram://bucket/runs/whole")
    run.networks = functools.cache(run.networks)
    return run


def variables(run, step):
    reader = tf.compat.v1.train.NewCheckpointReader(run.checkpoints.path(step))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def tree(path):
    return {os.path.join(parent, name) for parent, _, names in tf.io.gfile.walk(path) for name in names}


class TrainTest:
    def test_leaves_what_a_local_run_leaves(self, config, trained, tmp_path):
        local = loop.train(config.replace(model_dir=str(tmp_path)))
        found, expected = (
            {path.replace(directory, "") for path in tree(directory) if "tfevents" not in path}
            for directory in (trained.directory, str(tmp_path))
        )
        assert found == expected - {"/training.lock"}
        assert len([path for path in tree(trained.directory) if "tfevents" in path]) == 1
        assert trained.steps == local.steps == [1, 2]
        assert trained.scalars().keys() == local.scalars().keys()
        for name, value in variables(local, 2).items():
            np.testing.assert_array_equal(variables(trained, 2)[name], value, err_msg=name)

    @pytest.mark.parametrize(("networks", "steps", "kills"), [(False, 4, itertools.count()), (True, 2, [20])])
    def test_killed_between_any_two_writes_it_ends_in_the_same_bits(self, config, trained, monkeypatch, networks, steps, kills):
        """Without networks before every single write, with them before one."""
        monkeypatch.setattr(loop, "standard_hooks", lambda *_: [Keeping(2)])
        config = config.replace(train_steps=steps, keep_checkpoints=1)
        if not networks:
            monkeypatch.setattr(loop, "Trainer", ChaoticTrainer)
            monkeypatch.setattr(loop.data, "train_iterator", lambda *_: None)
        whole = trained if networks else loop.train(config.replace(model_dir="ram://bucket/chaos"))
        expected, writes = variables(whole, steps), Writes(monkeypatch)
        for kill in kills:
            killed = config.replace(model_dir=f"ram://bucket/killed{kill}/networks{networks}")
            writes.count, writes.last = 0, kill
            try:
                loop.train(killed)
                break
            except Killed:
                writes.last = float("inf")
            left = Run(killed.model_dir, killed)
            where, pinned = f"killed before write {kill + 1}, with the steps {left.steps}", left.checkpoints.pinned()
            for step in left.steps:  # What counts is whole.
                assert variables(left, step).keys() == expected.keys(), where
            assert pinned <= set(left.steps), where
            run = loop.train(killed)
            assert run.steps[-1] == run.last_grid()[0] == steps, where
            assert run.checkpoints.pinned() == {steps}, where
            for name, value in variables(run, steps).items():
                np.testing.assert_array_equal(value, expected[name], err_msg=f"{name}, {where}")
        assert left.steps and kill >= 20 if networks else kill > 50


class ReadTest:
    """What others make of the run, from there to there."""

    def test_sample(self, trained):
        grid = modes.draw(trained, modes.Request(output="ram://bucket/out/grid.png", samples_per_class=2))
        assert grid.endswith("in ram://bucket/out/grid.png")
        with files.reading("ram://bucket/out/grid.png") as file, Image.open(file) as image:
            assert image.size == (2 * 34 + 2, 3 * 34 + 2)
        for output in ("ram://bucket/out/many", "ram://bucket/out/all.npz"):
            modes.draw(trained, modes.Request(output=output, num_images=7))
        assert len(files.listing("ram://bucket/out/many")) == 7
        with files.reading("ram://bucket/out/all.npz") as file, np.load(file) as arrays:
            images = arrays["images"]
        assert metrics.Images("ram://bucket/out/all.npz").source.num_examples == 7
        for name, image in zip(files.listing("ram://bucket/out/many"), images, strict=True):
            with files.reading(f"ram://bucket/out/many/{name}") as file:
                np.testing.assert_array_equal(np.asarray(Image.open(file)), image)

    def test_evaluate_with_a_cache(self, trained, caplog):
        cache = "ram://bucket/cache"
        protocol = metrics.Protocol(num_samples=10, real_images=20, manifold=False, intra_fid_samples=4)
        run, evaluator = evaluation.prepare(trained.config.replace(classifier="faces", stats_cache=cache), protocol)
        record, _ = evaluation.evaluate_run(run, evaluator, Draws())
        assert run.records == [record]
        assert run.checkpoints.pinned() == {2}
        assert "metrics/intra_fid" in run.scalars()
        key = statistics.key_of(evaluator.source, evaluator.classifier, 20)
        expected = statistics.real_statistics(evaluator.source, evaluator.classifier, key).moments.covariance
        np.testing.assert_array_equal(statistics.real_statistics(None, None, key, cache).moments.covariance, expected)
        for name in files.listing(cache):
            files.write(f"{cache}/{name}", files.read(f"{cache}/{name}")[:1000])
        again = statistics.real_statistics(evaluator.source, evaluator.classifier, key, cache)
        np.testing.assert_array_equal(again.moments.covariance, expected)
        assert "cannot be used" in caplog.text

    def test_attention(self, trained):
        request = outputs.Request(output="ram://bucket/attention.png", html="ram://bucket/attention.html", samples_per_class=1)
        assert len(list(outputs.show(request, trained))) == 2
        with files.reading("ram://bucket/attention.png") as file, Image.open(file) as image:
            assert image.height > 3 * 160
        assert b"</html>" in files.read("ram://bucket/attention.html")

    def test_export(self, trained):
        formats.export_run(trained, "ram://bucket/export/", ["saved_model", "tflite"])
        assert {"README.md", "generator.tflite", "keras", "saved_model.pb"} <= set(files.listing("ram://bucket/export"))
        exported = saved_model.load("ram://bucket/export")
        z, labels = tf.random.normal([3, 4]), tf.constant([0, 1, 2])
        images = exported.model.signatures["serving_default"](z=z, labels=labels)["images"]
        np.testing.assert_allclose(images, trained.generator([z, labels], training=False), atol=2e-5)
        with pytest.raises(UserError, match="--export_dir=ram://bucket/export is not empty"):
            formats.check("ram://bucket/export", ["saved_model"])

    def test_report(self, trained):
        size = page.write([trained.directory], "ram://bucket/report.html")
        document = files.read("ram://bucket/report.html")
        assert len(document) == size
        assert b"--model_dir=ram://bucket/runs/whole-again" in document
        assert b"step 2: a class per row" in document

    def test_convert(self):
        reference_checkpoint.convert(PREFIX, "ram://bucket/converted")
        _, expected = reference_checkpoint.read(PREFIX)
        run = load_run("ram://bucket/converted")
        found = variables(run, run.steps[-1])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


class SharedTest:
    def test_a_training_that_another_one_may_still_run_is_told(self, trained, trainer, caplog):
        files.write(f"{trained.directory}/training.lock", "process 7 on elsewhere, since yesterday")
        loop.train(trained.config)
        assert "was left by process 7 on elsewhere, since yesterday" in caplog.text
        assert not files.exists(f"{trained.directory}/training.lock")
