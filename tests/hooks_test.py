"""The training loop and its hooks: what is called when, after what, and with what."""

import dataclasses
import time

import numpy as np
import pytest
import tensorflow as tf

import sagan_tf
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs import diagnosis, hooks, loop
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.hooks import Hook, Progress, SampleGrids
from sagan_tf.runs.loop import train
from sagan_tf.runs.run import Run
from sagan_tf.training import METRICS

TINY = {"image_size": 32, "gf_dim": 2, "df_dim": 2, "z_dim": 4, "num_classes": 6, "attention_resolution": 8, "batch_size": 4}


class CountingTrainer:
    """Stands in for the trainer: a step costs nothing, and its metrics are its number."""

    stop_after = None

    def __init__(self, config, strategy):
        self.config, self.strategy = config, strategy
        self.step, self.rollbacks = (tf.Variable(0, dtype=tf.int64) for _ in range(2))
        self.stop = tf.Variable(False)
        self.sampled_generator = self.discriminator = self.ema_generator = None

    def state(self):
        return {"step": self.step, "rollbacks": self.rollbacks}

    def train(self, batches, steps):
        numbers = np.arange(int(self.step), int(self.step + tf.cast(steps, tf.int64))) + 1
        stopped = self.stop_after in numbers
        numbers = numbers[numbers <= self.stop_after] if stopped else numbers
        self.step.assign(numbers[-1])
        return tf.constant(np.repeat(numbers[:, None], len(METRICS), 1), tf.float32), tf.constant(stopped)


@pytest.fixture
def counting(monkeypatch):
    """The loop without networks and without its own hooks."""
    monkeypatch.setattr(loop, "Trainer", CountingTrainer)
    monkeypatch.setattr(loop, "standard_hooks", lambda *_: [])


class Listener(Hook):
    """Notes the steps at which it is called, the steps of the metrics, and the checkpoints on the disk."""

    def __init__(self, period, of_checkpoint=False):
        self.period, self.of_checkpoint = period, of_checkpoint
        self.calls, self.metrics, self.checkpoints, self.closed = [], [], [], False

    def __call__(self, step, metrics):
        assert metrics.shape[1:] == (len(METRICS),)
        self.calls.append(step)
        self.metrics.append(metrics[:, 0].astype(int).tolist())
        self.checkpoints.append(self.training.run.steps)

    def missed(self, step):
        return step not in self.calls

    def close(self):
        self.closed = True


def run_of(path, **settings):
    return Config(model_dir=str(path), **{**TINY, "save_checkpoint_secs": 0, "save_checkpoint_steps": 1000, **settings})


@pytest.mark.usefixtures("counting")
class PeriodTest:
    @pytest.mark.parametrize("steps_per_loop", [1, 4, 1000])
    @pytest.mark.parametrize(
        ("train_steps", "save_checkpoint_steps", "periods"),
        [(12, 5, (1, 4, 6)), (13, 4, (5, 0, 100)), (7, 1000, (7, 2)), (1, 3, (1, 2, 0))],
    )
    def test_every_hook_at_its_multiples_and_at_the_last_step(
        self, tmp_path, steps_per_loop, train_steps, save_checkpoint_steps, periods
    ):
        hooks = [Listener(period) for period in periods]
        settings = {"train_steps": train_steps, "steps_per_loop": steps_per_loop, "keep_checkpoints": 100}
        run = train(run_of(tmp_path, save_checkpoint_steps=save_checkpoint_steps, **settings), hooks)
        for hook, period in zip(hooks, periods, strict=True):
            expected = sorted({*range(period or train_steps, train_steps + 1, period or train_steps), train_steps})
            assert hook.calls == expected
            before = [0, *expected]
            assert hook.metrics == [list(range(a + 1, b + 1)) for a, b in zip(before, expected, strict=False)]
            assert hook.closed
        assert run.steps == sorted({*range(0, train_steps, save_checkpoint_steps), train_steps})

    def test_negative_period_is_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(UserError, match="The hook Listener has period=-2"):
            train(run_of(tmp_path / "run", train_steps=4), [Listener(-2)])
        assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("counting")
class SavingTest:
    def test_a_step_is_saved_before_its_hooks_are_called(self, tmp_path, monkeypatch):
        events, save = [], Checkpoints.save
        monkeypatch.setattr(Checkpoints, "save", lambda *args: events.append(f"save {args[1]}") or save(*args))
        hook = Listener(2)
        monkeypatch.setattr(Listener, "__call__", lambda _, step, metrics: events.append(f"call {step}"))
        train(run_of(tmp_path, train_steps=5, save_checkpoint_steps=2), [hook])
        assert events == ["save 0", "save 2", "call 2", "save 4", "call 4", "save 5", "call 5"]

    def test_what_is_about_a_checkpoint_has_it_on_the_disk(self, tmp_path):
        hook, other = Listener(3, of_checkpoint=True), Listener(2)
        assert train(run_of(tmp_path, train_steps=7), [hook, other]).steps == [0, 3, 6, 7]
        assert [steps[-1] for steps in hook.checkpoints] == hook.calls == [3, 6, 7]

    @pytest.mark.parametrize("stop_after", [4, 5, 8])
    def test_interrupted_training_makes_up_for_it(self, tmp_path, monkeypatch, stop_after):
        long, short = Listener(4, of_checkpoint=True), Listener(4)
        monkeypatch.setattr(CountingTrainer, "stop_after", stop_after)
        with pytest.raises(SystemExit) as error:
            train(run_of(tmp_path, train_steps=8), [long, short])
        assert error.value.code == 75
        assert long.calls == [step for step in (4, 8) if step < stop_after]
        assert short.calls == [step for step in (4, 8) if step <= stop_after]
        monkeypatch.setattr(CountingTrainer, "stop_after", None)
        assert train(run_of(tmp_path, train_steps=8), [long, short]).steps[-1] == 8
        assert long.calls == short.calls == [4, 8]
        train(run_of(tmp_path, train_steps=8), [long, short])
        assert long.calls == short.calls == [4, 8]


@pytest.mark.usefixtures("counting")
class ExistingRunTest:
    """`train(config)` takes every field of `config` as given."""

    @pytest.mark.parametrize("settings", [{"gf_dim": 4}, {"gf_dim": Config.gf_dim}, {"num_classes": 5}, {"seed": 1}])
    def test_other_settings_are_refused_and_nothing_is_written(self, tmp_path, settings):
        Run.create(run_of(tmp_path))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
        name, value = next(iter(settings.items()))
        with pytest.raises(UserError, match=f"was trained with --{name}={TINY.get(name, 0)}, not {value}: leave the flag out"):
            train(run_of(tmp_path, train_steps=3, **settings))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before

    def test_free_settings_are_taken_even_where_they_are_defaults(self, tmp_path):
        Run.create(run_of(tmp_path, save_samples_steps=7, num_classes=6))
        run = train(run_of(tmp_path, train_steps=3, num_classes=-1))
        expected = run_of(tmp_path, train_steps=3, num_classes=6)
        assert run.config == expected
        assert sagan_tf.load_run(str(tmp_path)).config == expected
        assert dataclasses.asdict(expected)["save_samples_steps"] == Config.save_samples_steps

    def test_goes_on_with_what_it_returned(self, tmp_path):
        run = train(run_of(tmp_path, train_steps=2))
        assert train(run.config.replace(train_steps=4)).steps == [0, 2, 4]


class NoiseSource:
    """Images of a class differ by a standard deviation of 0.4; those of different classes also by their mean."""

    num_examples, num_classes, class_names = 3000, 6, ()

    def examples(self, indices):
        labels = tf.cast(indices % 6, tf.int32)
        noise = np.random.default_rng(indices.numpy()[0]).normal(0, 0.4, (len(indices), 32, 32, 3))
        return {"images": tf.constant(noise + labels.numpy()[:, None, None, None] / 3 - 1, tf.float32), "labels": labels}


class DiversityTest:
    """Grids of a generator that is told how varied to be, at every step."""

    @pytest.fixture
    def run(self, counting, tmp_path, monkeypatch):
        def run(diversities, **settings):
            def generate(generator, z, labels):
                diversity = diversities[int(trainer.step) // 100 - 1]
                noise = np.random.default_rng(1).normal(0, 0.4 * diversity, (len(z), 32, 32, 3))
                return noise + labels.numpy()[:, None, None, None]

            class Trainer(CountingTrainer):
                def __init__(self, *args):
                    nonlocal trainer
                    super().__init__(*args)
                    trainer = self

            trainer = None
            monkeypatch.setattr(loop, "Trainer", Trainer)
            monkeypatch.setattr(loop.data, "open_source", lambda config: NoiseSource())
            monkeypatch.setattr(loop.data, "train_iterator", lambda *_: None)
            monkeypatch.setattr(loop, "standard_hooks", lambda *_: [SampleGrids(100, Progress(), NoiseSource())])
            monkeypatch.setattr(hooks.sampling, "generate", generate)
            monkeypatch.setattr(Progress, "show", lambda self, step, values: shown.append((step, values)))
            monkeypatch.setattr(diagnosis, "COLLAPSE_STEPS", 200)
            settings = {"save_checkpoint_steps": 100, "keep_checkpoints": 1, "dataset": "folder:noise", **settings}
            return train(run_of(tmp_path, train_steps=100 * len(diversities), **settings)), shown

        shown = []
        return run

    def test_is_relative_to_the_real_images(self, run):
        diversities = (1.0, 0.5, 0.9)
        finished, shown = run(diversities)
        steps, values = finished.scalars()["samples/diversity"]
        assert list(steps) == [100, 200, 300]
        np.testing.assert_allclose(values, diversities, rtol=0.02)
        _, values = finished.scalars()["samples/deviation_over_z"]
        np.testing.assert_allclose(values, 0.4 * np.array(diversities), rtol=0.02)
        assert shown == [(100, {"diversity": "1.00"}), (200, {"diversity": "0.50"}), (300, {"diversity": "0.90"})]

    def test_the_last_healthy_checkpoint_is_kept(self, run, caplog):
        finished, _ = run((0.9, 0.6, 0.4, 0.1, 0.1, 0.1))
        assert finished.steps == [200, 600]
        assert finished.healthy_step == 200
        (warning,) = [record.message for record in caplog.records if "nearly alike" in record.message]
        assert "at step 400 and 0.10 at step 500" in warning
        assert "The checkpoint of step 200" in warning

    def test_the_healthy_checkpoint_is_that_of_the_grid_however_slow_the_disk(self, run, monkeypatch):
        write = Checkpoints._write
        monkeypatch.setattr(Checkpoints, "_write", lambda *args: time.sleep(0.3) or write(*args))
        assert run((0.9, 0.6, 0.4))[0].healthy_step == 200

    def test_on_collapse_stop_ends_the_run_and_keeps_what_is_saved(self, run, tmp_path):
        with pytest.raises(UserError, match=r"nearly alike.*The checkpoint of step 100 is from before"):
            run((0.9, 0.1, 0.1, 0.1), on_collapse="stop")
        assert sagan_tf.load_run(str(tmp_path)).steps == [100, 300]

    def test_damaged_pins_stop_nothing(self, run, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "pinned.json").write_text('{"best_fid": 1')
        assert run((0.9, 0.4))[0].healthy_step == 100


class OwnHookTest:
    def test_sees_the_networks_and_the_run_returns_them(self, tmp_path):
        """With all standard hooks around it."""
        seen = []

        class Weights(sagan_tf.Hook):
            def __call__(self, step, metrics):
                assert np.isfinite(metrics).all()
                seen.append((step, len(metrics), self.training.trainer.generator.get_weights()))

        run = sagan_tf.train(sagan_tf.Config(model_dir=str(tmp_path), train_steps=3, **TINY), hooks=[Weights()])
        ((step, count, weights),) = seen
        assert (step, count) == (3, 3)
        for model in (run.generator, sagan_tf.load_run(str(tmp_path)).generator):
            for value, expected in zip(model.get_weights(), weights, strict=True):
                np.testing.assert_array_equal(value, expected)
        assert run.last_grid()[0] == 3
        assert "training/generator_loss" in run.scalars()
