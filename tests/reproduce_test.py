"""`sagan-reproduce`: a killed suite goes on, and what it leaves says what was run and what came out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import Command

from sagan_tf.errors import UserError
from sagan_tf.experiments import plot, runner, table
from sagan_tf.experiments import suite as suite_lib
from sagan_tf.runs.checkpoints import Checkpoints

TINY = """
--dataset=faces
--image_size=32
--gf_dim=2
--df_dim=2
--z_dim=4
--batch_size=4
--attention_resolution={position}
--train_steps=60
--steps_per_loop=5
--save_summaries_steps=20
--save_samples_steps=20
--save_checkpoint_steps=5
--classifier=faces
--num_samples=70
--undefok=real_images
--real_images=80
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite of two arms at miniature scale."""
    folder = tmp_path_factory.mktemp("suites") / "tiny"
    folder.mkdir()
    for name, position in (("none", 0), ("attention_8", 8)):
        (folder / f"{name}.cfg").write_text(TINY.format(position=position))
    return folder


class RunTest:
    @pytest.fixture(scope="class")
    def resumed(self, suite, tmp_path_factory):
        """The suite after SIGKILL in the middle of its second run, and the same command once more."""
        output = tmp_path_factory.mktemp("output")
        arguments = [f"--suite={suite}", f"--output={output}", "--seeds=3"]
        command = [sys.executable, "-m", "sagan_tf.commands.reproduce", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        second = Checkpoints(str(output / "attention_8-seed3"))
        while not [step for step in second.steps() if step]:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at = second.steps()[-1]
        before = (output / "none-seed3" / "log.txt").read_text(), (output / "results" / "none-seed3.json").read_text()
        again = Command("reproduce", *arguments)
        assert again.wait() == 0, again.stderr
        return output, killed_at, before, again.stdout, again.stderr

    def test_finished_run_is_not_made_again(self, resumed):
        output, _, before, _, stderr = resumed
        assert (output / "none-seed3" / "log.txt").read_text() == before[0]
        assert (output / "results" / "none-seed3.json").read_text() == before[1]
        assert "1 of 2: none-seed3 was done before" in stderr

    def test_interrupted_run_goes_on_at_its_checkpoint(self, resumed):
        output, killed_at, _, _, _ = resumed
        assert 0 < killed_at < 60
        log = (output / "attention_8-seed3" / "log.txt").read_text()
        assert f"Continuing at step {killed_at}" in log
        assert Checkpoints(str(output / "attention_8-seed3")).steps()[-1] == 60

    def test_records_say_what_was_run_and_what_came_out(self, resumed):
        record = json.loads((resumed[0] / "results" / "attention_8-seed3.json").read_text())
        assert (record["arm"], record["seed"], record["suite"], record["diverged"]) == ("attention_8", 3, "tiny", "")
        assert record["settings"]["gf_dim"] == 2
        assert record["settings"]["attention_resolution"] == 8
        assert not {"model_dir", "stats_cache", "seed"} & record["settings"].keys()
        assert record["commits"]
        assert {"tensorflow", "keras", "python"} <= record["versions"].keys()
        assert record["seconds"]["train"] > 0
        assert record["protocol"]["num_samples"] == 70
        assert record["protocol"]["real_images"] == 80
        evaluated = json.loads((resumed[0] / "attention_8-seed3" / "metrics.jsonl").read_text())
        assert record["metrics"] == evaluated["values"]
        for name in ("agreement", "gamma_generator", "gamma_discriminator", "deviation_over_z", "diversity"):
            assert record["curves"][name]["steps"] == [20, 40, 60]
            assert record["final"][name] == record["curves"][name]["values"][-1]
        without_attention = json.loads((resumed[0] / "results" / "none-seed3.json").read_text())
        assert without_attention["curves"].keys() == {"agreement", "deviation_over_z", "diversity"}

    def test_last_grid_of_samples_lies_beside_the_record(self, resumed):
        kept = (resumed[0] / "results" / "attention_8-seed3.png").read_bytes()
        assert kept == (resumed[0] / "attention_8-seed3" / "samples" / "00000060.png").read_bytes()

    def test_table_follows_from_the_records_alone(self, resumed, tmp_path):
        output, _, _, stdout, _ = resumed
        for path in (output / "results").glob("*.json"):
            shutil.copy(path, tmp_path)
        text = table.write_table(str(tmp_path))
        assert text == stdout
        for name in ("table.md", "table.csv"):
            assert (tmp_path / name).read_bytes() == (output / "results" / name).read_bytes()

    def test_plot_follows_from_the_records_alone(self, resumed, tmp_path):
        for path in (resumed[0] / "results").glob("*.json"):
            shutil.copy(path, tmp_path)
        plot.write_plot(str(tmp_path))
        assert (tmp_path / "plot.png").read_bytes() == (resumed[0] / "results" / "plot.png").read_bytes()

    def test_record_of_another_experiment_is_not_taken_for_this_one(self, resumed, suite, tmp_path):
        other = tmp_path / "tiny"
        shutil.copytree(suite, other)
        (other / "none.cfg").write_text(TINY.format(position=0) + "--beta1=0.5\n")
        loaded = suite_lib.load_suite(str(other))
        with pytest.raises(UserError, match=r"another experiment \(--beta1=default, not 0.5\)"):
            runner.run_suite(loaded, suite_lib.plan(loaded, "3"), str(tmp_path / "output"), str(resumed[0] / "results"))

    def test_run_of_another_experiment_is_not_taken_for_this_one(self, resumed, suite, tmp_path):
        """Not even where the edited flagfile asks for a default."""
        other = tmp_path / "tiny"
        shutil.copytree(suite, other)
        (other / "none.cfg").write_text(TINY.format(position=0).replace("--z_dim=4", ""))
        loaded = suite_lib.load_suite(str(other))
        with pytest.raises(UserError, match="was trained with --z_dim=4, not 128"):
            runner.run_suite(loaded, suite_lib.plan(loaded, "3"), str(resumed[0]), str(tmp_path / "results"))


class RefusalTest:
    def test_one_sentence_and_exit_code_1(self, tmp_path):
        command = Command("reproduce", f"--suite={tmp_path}/nowhere", f"--output={tmp_path}/out")
        assert command.wait(60) == 1
        lines = [line for line in command.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, command.stderr
        assert lines[0].startswith("error: ")
        assert "nowhere holds no flagfiles" in lines[0]
        assert not (tmp_path / "out").exists()
