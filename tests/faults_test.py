"""What can go wrong around a training: kills, full and read-only disks, clocks, long runs."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import data, files, pixels
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics.record import Record
from sagan_tf.runs import loop
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.loop import train
from sagan_tf.runs.run import Run, load_run
from sagan_tf.training import Trainer

TINY = {"image_size": 32, "gf_dim": 2, "df_dim": 2, "z_dim": 4, "num_classes": 6, "attention_resolution": 8, "batch_size": 4}


def large(step):
    return {"step": tf.Variable(step, dtype=tf.int64), "kernel": tf.Variable(np.full(50_000, step, np.float32))}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; gives its directory and a function that mounts it anew with other options."""
    directory = tmp_path / "disk"
    directory.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True)

    if sys.platform != "linux" or os.geteuid() != 0 or mount("size=1m").returncode:
        pytest.skip("only root may mount a file system")
    yield directory, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


class DiskTest:
    def test_full_disk_is_named_and_harms_no_checkpoint(self, small_disk):
        directory, mount = small_disk
        checkpoints = Checkpoints(str(directory), keep=100)
        with pytest.raises(UserError, match=r"could not be written .*free some space.* The last complete checkpoint is"):
            for step in range(1, 100):
                checkpoints.save(step, large(step))
                checkpoints.wait()
        written = checkpoints.steps()
        assert written == list(range(1, step))
        assert len(written) >= 3
        state = large(0)
        for saved in written:
            assert checkpoints.restore(state, saved) == saved
            np.testing.assert_array_equal(state["kernel"], np.full(50_000, saved, np.float32))
        mount("size=2m")
        checkpoints.save(step, large(step))
        checkpoints.wait()
        assert checkpoints.restore(state) == step

    def test_disk_that_becomes_read_only_is_named_and_harms_no_checkpoint(self, small_disk):
        directory, mount = small_disk
        checkpoints = Checkpoints(str(directory))
        checkpoints.save(1, large(1))
        checkpoints.wait()
        mount("ro")
        checkpoints.save(2, large(2))
        with pytest.raises(UserError, match=r"Read-only file system.* step 1"):
            checkpoints.wait()
        assert checkpoints.restore(large(0)) == 1

    def test_read_only_directory_is_refused_before_training(self, small_disk):
        directory, mount = small_disk
        mount("ro")
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
            train(Config(model_dir=str(directory / "run"), **TINY))

    def test_training_on_a_full_disk_ends_with_the_last_checkpoint_whole(self, small_disk):
        directory, _ = small_disk
        config = Config(model_dir=str(directory), steps_per_loop=1, save_checkpoint_steps=1, keep_checkpoints=1000, **TINY)
        with pytest.raises(UserError, match=r"could not be written .*free some space"):
            train(config.replace(save_summaries_steps=1, train_steps=1000))
        checkpoints = load_run(str(directory)).checkpoints
        assert checkpoints.restore(Trainer(config).state()) == checkpoints.steps()[-1]

    def test_evaluation_on_a_full_disk_leaves_the_records_whole(self, small_disk, caplog):
        directory, _ = small_disk
        run = Run.create(Config(model_dir=str(directory), **TINY))
        run.add(Record({"fid": 1.0}, {}, step=1))
        with pytest.raises(OSError, match="No space"), open(directory / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        # Its first part fits into what the file has of its last page.
        run.add(Record({"fid": 1.0}, {}, ("x" * 10_000,), step=2))
        assert "The result of step 2 cannot be recorded" in caplog.text
        assert "No space" in caplog.text
        assert [record.step for record in run.records] == [1]

    def test_samples_that_cannot_be_written_do_not_end_a_training(self, tmp_path, caplog):
        (tmp_path / "samples").touch()
        run = train(Config(model_dir=str(tmp_path), train_steps=2, save_samples_steps=1, **TINY))
        assert run.steps[-1] == 2
        assert "Samples of step 2 cannot be written" in caplog.text


class EvaluationTest:
    def test_that_was_killed_is_made_when_the_run_goes_on(self, tmp_path):
        for number, image in enumerate(np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)):
            files.write(str(tmp_path / "images" / f"{number}.png"), pixels.png(image))
        settings = TINY | {"num_classes": 0, "dataset": f"folder:{tmp_path / 'images'}"}
        settings |= {"train_steps": 2, "eval_every_steps": 2, "classifier": "faces", "num_samples": 20}
        config = Config(model_dir=str(tmp_path), **settings)
        run = train(config)
        (first,) = run.records
        # As if it had been killed, and the checkpoint measured by hand in another way.
        other = dataclasses.replace(first, protocol={**first.protocol, "num_samples": 10})
        (tmp_path / "metrics.jsonl").write_text(f"{other.to_json()}\n")
        train(config)
        second = run.records[-1]
        assert (second.step, second.protocol) == (2, first.protocol)
        for name, value in first.values.items():
            np.testing.assert_allclose(second.values[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        train(config)
        assert len(run.records) == 2


class ClockTest:
    def test_newest_is_the_last_step_whatever_the_clock_said(self, tmp_path):
        checkpoints = Checkpoints(str(tmp_path), keep=2)
        for step, clock in ((1, 3_000), (2, 2_000), (3, 1_000)):
            checkpoints.save(step, large(step))
            checkpoints.wait()
            for entry in os.listdir(checkpoints.directory):
                os.utime(os.path.join(checkpoints.directory, entry), (clock, clock))
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore(large(0)) == 3

    def test_saving_by_time_does_not_follow_the_clock(self, tmp_path, monkeypatch):
        """The wall clock goes back a year at every look; checkpoints are due by the time that has really passed."""
        real, jumps = time.time, iter(range(10**9))
        monkeypatch.setattr(time, "time", lambda: real() - next(jumps) * 3.15e7)
        passed = iter(range(0, 10**9, 60))
        monkeypatch.setattr(loop.time, "monotonic", lambda: next(passed))
        config = Config(model_dir=str(tmp_path), train_steps=4, steps_per_loop=1, save_checkpoint_secs=30, **TINY)
        assert train(config).steps == [0, 1, 2, 3, 4]


# sagan-train, killed while it writes a checkpoint: at the n-th flush, of which a checkpoint has three (two files, its directory).
KILLED_WHILE_WRITING = """
    import os, signal, sys, types
    from sagan_tf import files
    from sagan_tf.commands import train
    from sagan_tf.runs import checkpoints

    flushes, last = [], int(sys.argv.pop(1))

    def sync_or_die(path):
        flushes.append(path)
        if len(flushes) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        files.sync(path)

    checkpoints.files = types.SimpleNamespace(**{**vars(files), "sync": sync_or_die})
    train.run()
"""


@pytest.mark.slow
class KillTest:
    FLAGS = (
        *(f"--{name}={value}" for name, value in TINY.items()),
        "--dataset=faces",
        "--ema_decay=0.5",
        "--deterministic",
        "--steps_per_loop=4",
        "--save_checkpoint_steps=20",
        "--save_summaries_steps=10",
        "--save_samples_steps=1000",
        "--train_steps=2000",
    )

    def finish(self, model_dir):
        result = subprocess.run([sys.executable, "-m", "sagan_tf.commands.train", *self.FLAGS, f"--model_dir={model_dir}"])
        assert result.returncode == 0

    def test_twenty_kills_change_nothing(self, tmp_path):
        self.finish(tmp_path / "whole")
        draw, checkpoints, newest = random.Random(0), Checkpoints(str(tmp_path / "killed"), keep=1000), []
        for kill in range(20):
            command = [sys.executable, "-m", "sagan_tf.commands.train"]
            while_writing = kill % 4 == 3
            if while_writing:
                command = [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_WRITING), str(draw.randint(1, 6))]
            process = subprocess.Popen([*command, *self.FLAGS, f"--model_dir={tmp_path / 'killed'}"], stderr=subprocess.PIPE)
            if kill % 4 == 2:  # Before its first step, mostly.
                time.sleep(draw.uniform(0, 10))
                process.kill()
            elif not while_writing:
                goal = (checkpoints.steps() or [0])[-1] + 20 * draw.randint(0, 2)
                while (checkpoints.steps() or [-1])[-1] < goal:
                    assert process.poll() is None
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.5))
                process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            steps = checkpoints.steps()
            newest.append(steps[-1] if steps else -1)
        print(f"{len(newest)} kills; the newest checkpoint after each: {newest}")
        assert newest == sorted(newest)  # None loses what was saved before.
        self.finish(tmp_path / "killed")
        readers = [tf.train.load_checkpoint(Checkpoints(str(tmp_path / name)).path(2000)) for name in ("whole", "killed")]
        assert readers[0].get_variable_to_shape_map() == readers[1].get_variable_to_shape_map()
        for name in readers[0].get_variable_to_shape_map():
            np.testing.assert_array_equal(readers[0].get_tensor(name), readers[1].get_tensor(name), err_msg=name)
        grids = [(tmp_path / name / "samples" / "00002000.png").read_bytes() for name in ("whole", "killed")]
        assert grids[0] == grids[1]


@pytest.mark.slow
class LongRunTest:
    def test_memory_stays_flat_and_nothing_is_traced_again(self):
        def resident():
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1])

        trainer = Trainer(Config(**TINY))
        iterator = data.train_iterator(data.open_source(trainer.config), trainer.config, trainer.strategy)
        trainer.train(iterator, tf.constant(200))
        traces, before = trainer.train.experimental_get_tracing_count(), resident()
        for _ in range(90):
            trainer.train(iterator, tf.constant(20))
        assert int(trainer.step) == 2000
        assert trainer.train.experimental_get_tracing_count() == traces
        print(f"resident pages: {before} after 200 steps, {resident()} after 2,000")
        assert resident() < 1.02 * before
