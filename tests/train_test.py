"""The commands as a user runs them: processes of their own, from flags to files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from processes import Command

from sagan_tf.runs.checkpoints import Checkpoints

TINY = [
    "--dataset=faces",
    "--image_size=32",
    "--gf_dim=2",
    "--df_dim=2",
    "--z_dim=4",
    "--attention_resolution=8",
    "--batch_size=4",
    "--steps_per_loop=2",
    "--save_samples_steps=1000",
    "--save_summaries_steps=2",
    "--deterministic",
    "--seed=1",
]


def command(name, *arguments):
    """Runs a command that must end well, and returns it."""
    running = Command(name, *arguments)
    assert running.wait() == 0, running.stderr
    return running


def refused(name, *arguments):
    """Runs a command that must end in one sentence, and returns that."""
    result = Command(name, *arguments)
    assert result.wait() == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def values(model_dir, step):
    reader = tf.train.load_checkpoint(Checkpoints(str(model_dir)).path(step))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_same(model_dir, other, step):
    expected, actual = values(model_dir, step), values(other, step)
    assert set(expected) == set(actual)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of eight steps that nothing interrupted, with an averaged generator; Python started anew, as a user does."""
    model_dir = tmp_path_factory.mktemp("runs") / "trained"
    words = [sys.executable, "-m", "sagan_tf.commands.train", *TINY, "--ema_decay=0.5", "--train_steps=8"]
    result = subprocess.run([*words, f"--model_dir={model_dir}"], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return model_dir, result


class TrainTest:
    def test_says_where_everything_is(self, trained):
        model_dir, result = trained
        for text in ("Trained to step 8", str(model_dir / "checkpoints"), "sagan-sample", "Agreement of the eyes"):
            assert text in result.stdout
        assert os.listdir(model_dir / "samples") == ["00000008.png"]
        assert Image.open(model_dir / "samples" / "00000008.png").size == (8 * 34 + 2, 6 * 34 + 2)

    def test_saves_the_resolved_configuration(self, trained):
        settings = json.loads((trained[0] / "config.json").read_text())
        assert settings["num_classes"] == 6
        assert settings["gf_dim"] == 2

    def test_summaries_hold_losses_gammas_and_sigmas(self, trained):
        tags = set()
        for path in (trained[0] / "summaries").iterdir():
            for record in tf.data.TFRecordDataset(str(path)):
                tags |= {value.tag for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value}
        expected = {"training/generator_loss", "logits/real", "gamma/generator", "gamma/discriminator", "samples"}
        expected |= {"sigma/generator/block_1/conv_1", "sigma/discriminator/logits/embedding", "learning_rate/generator"}
        assert expected <= tags

    def test_interrupted_run_resumes_to_the_same_bits(self, trained, tmp_path):
        """Stopped in between (SIGKILL after a checkpoint) and continued, every variable is the same."""
        flags = [*TINY, "--ema_decay=0.5", "--save_checkpoint_steps=2", "--keep_checkpoints=1000", f"--model_dir={tmp_path}"]
        process = Command("train", *flags, "--train_steps=1000000")
        while not [step for step in Checkpoints(str(tmp_path)).steps() if step]:
            assert process.running
            time.sleep(0.05)
        process.kill()
        # A fast machine may have gone further than step 8: what is there of later steps is removed.
        for step in [step for step in Checkpoints(str(tmp_path)).steps() if step > 6]:
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
        assert Checkpoints(str(tmp_path)).steps()[-1] > 0
        command("train", f"--model_dir={tmp_path}", "--train_steps=8")
        assert_same(trained[0], tmp_path, 8)
        expected = np.asarray(Image.open(trained[0] / "samples" / "00000008.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / "00000008.png")), expected)

    def test_sigterm_saves_and_exits_with_the_retry_code(self, tmp_path):
        flags = [*TINY, "--save_checkpoint_secs=100000", "--train_steps=1000000", "--steps_per_loop=1000000"]
        process = Command("train", *flags, f"--model_dir={tmp_path}")
        while not any(path.stat().st_size > 500 for path in tmp_path.glob("summaries/*")):
            assert process.running
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert Checkpoints(str(tmp_path)).steps()[-1] > 0


class SampleTest:
    def test_grid_and_separate_files(self, trained, tmp_path):
        model_dir = f"--model_dir={trained[0]}"
        command("sample", model_dir, f"--output={tmp_path}/grid.png", "--classes=1,4", "--samples_per_class=3")
        assert Image.open(tmp_path / "grid.png").size == (3 * 34 + 2, 2 * 34 + 2)
        command("sample", model_dir, f"--output={tmp_path}/files", "--samples_per_class=2", "--truncation=0.5")
        assert len(os.listdir(tmp_path / "files")) == 12
        assert Image.open(tmp_path / "files" / "class0003_000001.png").size == (32, 32)

    def test_refuses_what_it_cannot_draw(self, trained, tmp_path):
        assert "they are 0 to 5" in refused("sample", f"--model_dir={trained[0]}", "--output=x.png", "--classes=6")
        assert "--output is missing" in refused("sample", f"--model_dir={trained[0]}")
        assert "does not exist" in refused("sample", f"--model_dir={tmp_path}/none", "--output=x.png")


class EvaluateTest:
    FLAGS = ("--classifier=faces", "--num_samples=60", "--real_images=80", "--eval_batch_size=30")

    def records(self, model_dir):
        with open(model_dir / "metrics.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @pytest.fixture(scope="class")
    def watched(self, trained):
        """The run after `--watch` has met its last checkpoint, and ended by itself."""
        result = command("evaluate", f"--model_dir={trained[0]}", *self.FLAGS, "--watch", "--intra_fid_samples=10")
        return trained[0], result

    def test_watch_records_and_keeps_the_best(self, watched):
        model_dir, result = watched
        (record,) = self.records(model_dir)
        assert record["step"] == 8
        assert {"fid", "inception_score", "intra_fid", "kid", "precision"} <= set(record["values"])
        assert record["protocol"]["use_ema"] is True
        assert "note: 60 generated images are no more than the 64 features" in result.stdout
        pins = json.loads((model_dir / "checkpoints" / "pinned.json").read_text())
        assert [step for name, step in pins.items() if name.startswith("best_fid")] == [8]

    def test_again_gives_the_same_values(self, watched):
        model_dir, _ = watched
        command("evaluate", f"--model_dir={model_dir}", *self.FLAGS, "--intra_fid_samples=10")
        first, second = self.records(model_dir)[:2]
        assert first["protocol"] == second["protocol"]
        for name, value in first["values"].items():
            np.testing.assert_allclose(second["values"][name], value, rtol=1e-4, atol=1e-6, err_msg=name)

    def test_average_and_last_weights_are_measured_apart(self, watched):
        model_dir, _ = watched
        command("evaluate", f"--model_dir={model_dir}", *self.FLAGS, "--intra_fid_samples=10", "--nouse_ema")
        first, *_, last = self.records(model_dir)
        assert last["protocol"] == {**first["protocol"], "use_ema": False}
        for name in ("fid", "intra_fid"):
            assert abs(last["values"][name] - first["values"][name]) > 1e-3 * first["values"][name]

    def test_folder_of_images(self, watched, tmp_path):
        model_dir, _ = watched
        command("sample", f"--model_dir={model_dir}", f"--output={tmp_path}/images", "--samples_per_class=10")
        count = len(self.records(model_dir))
        result = command("evaluate", f"--model_dir={model_dir}", *self.FLAGS, f"--images={tmp_path}/images")
        assert f"{tmp_path}/images" in result.stdout
        assert len(self.records(model_dir)) == count
        message = refused("evaluate", f"--model_dir={model_dir}", *self.FLAGS, "--num_samples=61", f"--images={tmp_path}/images")
        assert "holds 60 images, fewer than the 61" in message

    def test_classifier_source_is_told_without_a_run(self):
        result = command("evaluate", "--print_classifier_source")
        assert "tfhub.dev/tensorflow/tfgan/eval/inception/1" in result.stdout
        assert "TFHUB_CACHE_DIR" in result.stdout

    def test_unknown_classifier_is_refused(self, trained):
        assert "neither inception, faces" in refused("evaluate", f"--model_dir={trained[0]}", "--classifier=resnet")


class RefusalTest:
    """Bad input ends in one sentence before any training, and harms nothing saved."""

    def test_model_dir_of_another_configuration(self, trained):
        before = values(trained[0], 8)
        message = refused("train", f"--model_dir={trained[0]}", "--gf_dim=4", "--train_steps=10")
        assert "--gf_dim=2, not 4" in message
        for name, value in values(trained[0], 8).items():
            np.testing.assert_array_equal(value, before[name])

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (["--attention_resolution=64"], "--attention_resolution=64 does not occur"),
            (["--dataset=folder:/no/such/folder"], "/no/such/folder does not exist"),
            (["--dataset=tfrecord:/no/such/*.tfrecord"], "no file matches"),
            (["--dataset=nonsense"], "none of faces, folder:PATH"),
            (["--batch_size=x"], "--batch_size"),
            (["--no_such_flag=1"], "no_such_flag"),
            (["--num_classes=9"], "at most 6 classes"),
            (["--flagfile=/no/such/file.cfg"], "/no/such/file.cfg"),
            (["--tpu=nowhere", "--distribution=tpu"], "TPU"),
        ],
    )
    def test_impossible_flags(self, tmp_path, flags, text):
        assert text in refused("train", *TINY, f"--model_dir={tmp_path}/run", *flags)
        assert not (tmp_path / "run").exists()

    def test_missing_model_dir(self):
        assert "--model_dir is missing" in refused("train", *TINY)

    def test_unwritable_model_dir(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert "cannot be written" in refused("train", *TINY, f"--model_dir={tmp_path}/file/run")

    def test_missing_classifier_is_named_before_training(self, tmp_path):
        message = refused("train", *TINY, "--eval_every_steps=1000", f"--classifier={tmp_path}/none", f"--model_dir={tmp_path}/run")
        assert f"{tmp_path}/none" in message
        assert not (tmp_path / "run").exists()

    def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(self, tmp_path):
        flags = [*TINY, "--generator_learning_rate=1e30", "--discriminator_learning_rate=1e30", "--train_steps=50"]
        message = refused("train", *flags, "--save_checkpoint_steps=1", f"--model_dir={tmp_path}")
        assert "is not finite" in message
        assert "last good one" in message
        for value in values(tmp_path, Checkpoints(str(tmp_path)).steps()[-1]).values():
            assert np.isfinite(value).all()


class HelpTest:
    @pytest.mark.parametrize("name", ["train", "sample", "export"])
    def test_lists_every_group(self, name):
        result = command(name, "--help")
        for group in ("Run:", "Data:", "Networks:", "Optimisation:", "Speed:", "Output:"):
            assert group in result.stdout
        assert "--discriminator_learning_rate  (default: 0.0004)" in result.stdout
