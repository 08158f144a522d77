"""Measuring the checkpoints of a run: the best are kept, and a running training is watched."""

import errno
from unittest import mock

import pytest
import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics.record import Record
from sagan_tf.runs import evaluation
from sagan_tf.runs.run import Run

CONFIG = Config(image_size=32, attention_resolution=16)
PROTOCOL = {"num_samples": 60, "real_images": 80, "dataset": "faces", "classifier": "faces", "resize": "none"}


class KeepTest:
    def record(self, step, fid, **protocol):
        return Record({"fid": fid}, protocol, step=step)

    def test_lowest_fid_of_each_protocol_is_kept(self, tmp_path):
        run = Run(str(tmp_path), CONFIG)
        assert run.add(self.record(1, 5.0, num_samples=50_000))
        assert run.add(self.record(2, 9.0, num_samples=100))
        assert not run.add(self.record(3, 6.0, num_samples=50_000))
        assert run.checkpoints.pinned() == {1, 2}
        assert run.add(self.record(4, 4.0, num_samples=50_000))
        assert run.checkpoints.pinned() == {2, 4}
        assert [record.step for record in run.records] == [1, 2, 3, 4]
        assert evaluation.measured(run, {"num_samples": 50_000}) == {1, 3, 4}

    def test_run_that_cannot_be_written_costs_no_result(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        assert Run(str(tmp_path / "file"), CONFIG).add(self.record(1, 5.0))
        assert "cannot be recorded" in caplog.text


class WatchTest:
    @pytest.fixture
    def watch(self, tmp_path, monkeypatch):
        """Watches a run that saves a checkpoint, keeping two, each time that the watcher would wait."""

        def call(fids, train_steps, steps_meanwhile=0, read_only=False, **options):
            run = Run(str(tmp_path), CONFIG.replace(train_steps=train_steps, keep_checkpoints=2))
            steps, seen = iter(range(1, train_steps + 1)), {}

            def train(_=None):
                step = next(steps)
                run.checkpoints.save(step, {"step": tf.Variable(step)})
                run.checkpoints.wait()

            def evaluate(step):
                for _ in range(steps_meanwhile):
                    if step < train_steps:
                        train()
                assert step in run.steps
                best = all(fids[step] < other for other in seen.values())
                seen[step] = fids[step]
                return Record({"fid": fids[step]}, PROTOCOL, step=step), best

            if read_only:
                monkeypatch.setattr(run, "pin_evaluated", mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
            monkeypatch.setattr(evaluation.time, "sleep", train)
            texts = list(evaluation.watch(run, evaluate, **options))
            return list(seen), texts

        return call

    def test_ends_with_the_last_step(self, watch):
        steps, texts = watch({1: 3.0, 2: 4.0, 3: 5.0}, 3)
        assert steps == [1, 2, 3]
        assert texts[0].startswith("Step 1, the lowest FID so far:\n  fid ")
        assert texts[1].startswith("Step 2:\n  fid ")

    def test_refuses_a_run_that_cannot_be_written(self, watch):
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
            watch({1: 3.0}, 1, read_only=True)

    def test_patience_counts_evaluations_in_a_row_without_a_better_fid(self, watch):
        fids = dict(enumerate([9.0, 8.0, 8.5, 7.0, 7.5, 7.4, 7.3, 1.0], start=1))
        steps, texts = watch(fids, 8, patience=3)
        assert steps == [1, 2, 3, 4, 5, 6, 7]
        assert "No better FID in 3 evaluations" in texts[-1]

    def test_passes_over_what_it_cannot_keep_up_with(self, watch):
        """Four checkpoints come during each evaluation; the one being evaluated is not removed meanwhile."""
        assert watch(dict.fromkeys(range(1, 10), 1.0), 9, steps_meanwhile=4)[0] == [1, 5, 9]

    def test_steps_already_evaluated_are_left_alone(self, watch):
        assert watch({2: 1.0, 3: 1.0}, 3, done={1})[0] == [2, 3]
