"""A run as Python sees it: what it samples, what it keeps, and which images it goes on with."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import sagan_tf
from sagan_tf import files
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics.record import Record, fingerprint
from sagan_tf.runs.loop import train
from sagan_tf.runs.run import Run

GOLDEN = pathlib.Path(__file__).parent / "golden" / "version_0_1" / "run"


@pytest.fixture
def run(tmp_path):
    """A copy of a finished run of four steps."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    return sagan_tf.load_run(str(tmp_path / "run"))


def record(step, fid, **protocol):
    return Record({"fid": fid}, {"classifier": "x", **protocol}, step=step)


class SampleTest:
    def test_is_the_generator_on_normal_z_rounded_to_pixels(self, run):
        images = run.sample(classes=[2, 0], count=3, seed=5)
        z = [tf.random.stateless_normal([4], tf.constant([5, number], tf.int64)) for number in range(6)]
        expected = run.generator([tf.stack(z), tf.constant([2, 2, 2, 0, 0, 0])], training=False)
        assert images.dtype == np.uint8
        np.testing.assert_allclose(images, (np.float64(expected) + 1) * 127.5, atol=0.501)

    def test_all_classes_by_default(self, run):
        assert run.sample(count=1).shape == (6, 32, 32, 3)

    @pytest.mark.parametrize("classes", [[6], [-1], [], [0, 9]])
    def test_refuses_classes_that_are_not_there(self, run, classes):
        with pytest.raises(UserError, match="they are 0 to 5"):
            run.sample(classes=classes)

    def test_refuses_no_images(self, run):
        with pytest.raises(UserError, match="count=0 must be at least 1"):
            run.sample(count=0)


class AddTest:
    def test_keeps_the_best_of_each_protocol(self, run):
        assert run.add(record(2, 5.0))
        assert not run.add(record(4, 6.0))
        assert run.add(record(4, 1.0, seed=1))
        pins = json.loads((pathlib.Path(run.directory) / "checkpoints" / "pinned.json").read_text())
        best = [pins[f"best_fid-{fingerprint(protocol)[:8]}"] for protocol in ({"classifier": "x"}, {"classifier": "x", "seed": 1})]
        assert best == [2, 4]
        assert [each.values["fid"] for each in run.records[-3:]] == [5.0, 6.0, 1.0]
        assert run.measured == run.records[-1]

    def test_a_result_that_cannot_be_written_is_told(self, run, caplog, monkeypatch):
        monkeypatch.setattr("sagan_tf.files.append_line", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        before = len(run.records)
        assert run.add(record(4, 1.0))
        assert "The result of step 4 cannot be recorded" in caplog.text
        assert len(run.records) == before
        assert run.measured.values == {"fid": 1.0}


class DamageTest:
    def test_half_a_record_is_passed_over_and_the_next_one_stands_alone(self, run, caplog):
        path = pathlib.Path(run.directory) / "metrics.jsonl"
        path.write_text(f"{record(2, 5.0).to_json()}\n{record(4, 6.0).to_json()[:20]}")
        assert run.add(record(4, 1.0))
        assert [(each.step, each.values["fid"]) for each in run.records] == [(2, 5.0), (4, 1.0)]
        assert f"Line 2 of {path} is passed over" in caplog.text


class SharedTest:
    def test_a_directory_in_which_another_one_trains_is_left_as_it_is(self, tmp_path):
        settings = {"image_size": 32, "attention_resolution": 8, "batch_size": 4, "train_steps": 1}
        config = Config(model_dir=str(tmp_path), dataset="faces", **settings)
        with files.held(str(tmp_path)), pytest.raises(UserError, match=r"is in use \(process \d+ on .*, since .*\)"):
            train(config)
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]


class ReconcileTest:
    @pytest.fixture
    def trained(self, tmp_path):
        """A run on a folder, with a setting that may change."""
        config = Config(model_dir=str(tmp_path), dataset="folder:/x", num_classes=0, image_size=32, attention_resolution=8)
        return Run.create(config.replace(save_samples_steps=7))

    def test_images_left_at_their_default_are_those_of_the_run(self, trained):
        config = Config(model_dir=trained.directory, num_classes=0, image_size=32, attention_resolution=8)
        assert Run.reconcile(config).dataset == "folder:/x"

    def test_images_that_are_named_are_taken(self, trained):
        assert Run.reconcile(trained.config.replace(dataset="folder:/y")).dataset == "folder:/y"

    def test_all_else_is_as_given(self, trained):
        given = trained.config.replace(save_samples_steps=Config.save_samples_steps)
        assert Run.reconcile(given).save_samples_steps == Config.save_samples_steps


class PretrainedTest:
    def test_says_that_there_is_none(self):
        with pytest.raises(UserError, match="no pretrained run called 'faces64'"):
            sagan_tf.pretrained("faces64")
