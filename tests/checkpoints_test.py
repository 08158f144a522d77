"""Checkpoints: whole or absent, verified, and read back by name."""

import os

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs import checkpoints as checkpoints_lib
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.run import Run, load_run
from sagan_tf.training import Trainer


def variables(value=0.0):
    return {"a/kernel": tf.Variable(np.full((2, 3), value, np.float32)), "step": tf.Variable(int(value), dtype=tf.int64)}


def saved(directory, steps, **options):
    checkpoints = Checkpoints(str(directory), **options)
    for step in steps:
        checkpoints.save(step, variables(step))
    checkpoints.wait()
    return checkpoints


class RoundTripTest:
    def test_values_come_back_exactly(self, tmp_path):
        checkpoints = saved(tmp_path, [3, 7])
        state = variables()
        assert checkpoints.restore(state) == 7
        np.testing.assert_array_equal(state["a/kernel"], np.full((2, 3), 7.0))
        assert checkpoints.restore(state, step=3) == 3
        assert int(state["step"]) == 3

    def test_tensorflow_reads_them_by_name(self, tmp_path):
        reader = tf.train.load_checkpoint(saved(tmp_path, [5]).path(5))
        assert reader.get_variable_to_shape_map() == {"a/kernel": [2, 3], "step": []}

    def test_values_are_those_at_the_time_of_saving(self, tmp_path):
        checkpoints, state = Checkpoints(str(tmp_path)), variables(1)
        checkpoints.save(1, state)
        state["a/kernel"].assign(tf.fill([2, 3], 9.0))
        checkpoints.wait()
        checkpoints.restore(state)
        np.testing.assert_array_equal(state["a/kernel"], np.ones((2, 3)))

    def test_empty_directory_has_none(self, tmp_path):
        assert Checkpoints(str(tmp_path)).restore(variables()) is None


class RetentionTest:
    def test_keeps_recent_periodic_and_pinned(self, tmp_path):
        checkpoints = saved(tmp_path, [1, 2], keep=2, keep_every_steps=10)
        checkpoints.pin("best_fid", 2)
        for step in (3, 11, 12, 13, 21, 22, 23):
            checkpoints.save(step, variables(step))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 11, 21, 22, 23]

    def test_a_new_pin_lets_go_of_the_old(self, tmp_path):
        checkpoints = saved(tmp_path, [1, 2], keep=1)
        assert checkpoints.steps() == [2]
        checkpoints.pin("best_fid", 2)
        checkpoints.save(3, variables(3))
        checkpoints.wait()
        checkpoints.pin("best_fid", 3)
        checkpoints.save(4, variables(4))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


class DamageTest:
    def flip(self, checkpoints, step, suffix=".data-00000-of-00001"):
        path = checkpoints.path(step) + suffix
        with open(path, "r+b") as file:
            file.seek(5)
            byte = file.read(1)
            file.seek(5)
            file.write(bytes([byte[0] ^ 0xFF]))

    @pytest.mark.parametrize("suffix", [".data-00000-of-00001", ".index"])
    def test_damaged_newest_falls_back_to_the_one_before(self, tmp_path, suffix):
        checkpoints, state = saved(tmp_path, [1, 2]), variables()
        self.flip(checkpoints, 2, suffix)
        assert checkpoints.restore(state) == 1
        assert int(state["step"]) == 1

    def test_missing_file_falls_back(self, tmp_path):
        checkpoints = saved(tmp_path, [1, 2])
        os.remove(checkpoints.path(2) + ".index")
        assert checkpoints.restore(variables()) == 1

    def test_nothing_readable_is_an_error(self, tmp_path):
        checkpoints = saved(tmp_path, [1])
        self.flip(checkpoints, 1)
        with pytest.raises(UserError, match="damaged"):
            checkpoints.restore(variables())

    def test_unfinished_writes_are_ignored_and_cleaned(self, tmp_path):
        checkpoints = saved(tmp_path, [1])
        os.makedirs(os.path.join(checkpoints.directory, "tmp-2"))
        assert checkpoints.steps() == [1]
        checkpoints.save(3, variables(3))
        checkpoints.wait()
        assert sorted(os.listdir(checkpoints.directory)) == ["1", "3"]

    def test_half_a_directory_is_no_checkpoint_and_goes(self, tmp_path):
        """A process was killed while it removed one, or moved it on an object store."""
        checkpoints = saved(tmp_path, [1, 2])
        os.remove(checkpoints.path(1) + ".index")
        assert checkpoints.steps() == [2]
        checkpoints.save(3, variables(3))
        checkpoints.wait()
        assert sorted(os.listdir(checkpoints.directory)) == ["2", "3"]

    def test_failed_write_names_the_last_good_one(self, tmp_path, monkeypatch):
        checkpoints = saved(tmp_path, [1])

        def full_disk(path):
            raise OSError(28, "No space left on device", path)

        monkeypatch.setattr(checkpoints_lib.files, "sync", full_disk)
        checkpoints.save(2, variables(2))
        with pytest.raises(UserError, match=r"No space left.* step 1"):
            checkpoints.wait()
        assert os.listdir(checkpoints.directory) == ["1"]


class MismatchTest:
    def test_names_and_shapes_are_listed(self, tmp_path):
        checkpoints = saved(tmp_path, [1])
        state = {"a/kernel": tf.Variable(np.zeros((4, 3), np.float32)), "b": tf.Variable(0.0)}
        with pytest.raises(UserError, match=r"a/kernel is \[2, 3\] instead of \[4, 3\].*b is missing.*step is not part"):
            checkpoints.restore(state)

    def test_absent_step_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"no checkpoint of step 9; it has \[1, 2\]"):
            saved(tmp_path, [1, 2]).restore(variables(), step=9)


class NetworksTest:
    """The networks of a run, from its checkpoints."""

    def trained(self, path, **settings):
        config = Config(
            image_size=32, gf_dim=2, df_dim=2, z_dim=4, num_classes=3, attention_resolution=8, model_dir=str(path), **settings
        )
        trainer = Trainer(config)
        for variable in trainer.generator.variables:
            variable.assign(variable + 0.25)
        run = Run.create(config)
        run.checkpoints.save(0, trainer.state())
        run.checkpoints.wait()
        return trainer

    def same(self, model, other):
        return all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))

    def test_are_those_trained(self, tmp_path):
        trainer = self.trained(tmp_path)
        run = load_run(str(tmp_path))
        assert self.same(run.generator, trainer.generator)
        assert self.same(run.discriminator, trainer.discriminator)

    def test_generator_is_the_average_if_there_is_one(self, tmp_path):
        trainer = self.trained(tmp_path, ema_decay=0.5)
        run = load_run(str(tmp_path))
        assert self.same(run.networks().generator, trainer.ema_generator)
        assert self.same(run.networks(use_ema=False).generator, trainer.generator)

    def test_average_that_was_not_kept_is_refused(self, tmp_path):
        self.trained(tmp_path)
        with pytest.raises(UserError, match="--ema_decay=0"):
            load_run(str(tmp_path)).networks(use_ema=True)

    def test_directory_without_checkpoints_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no checkpoint yet"):
            Run.create(Config(num_classes=3, model_dir=str(tmp_path))).networks()
