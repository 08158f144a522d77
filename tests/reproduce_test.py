"""Suites of flagfiles: what is run, that a killed suite goes on, and that the table follows from the records alone."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.stats

from sagan_tf.commands import reproduce as tool
from sagan_tf.errors import UserError
from sagan_tf.runs.checkpoints import Checkpoints

TOOL = (sys.executable, "-m", "sagan_tf.commands.reproduce")
ROOT = pathlib.Path(__file__).parent.parent


TINY = """
--dataset=twins
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
--classifier=embedded
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


def write_suite(folder, **arms):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in arms.items():
        (folder / f"{name}.cfg").write_text("\n".join(["--image_size=32", "--attention_resolution=0", *lines]) + "\n")
    return str(folder)


def reproduce(*arguments, **kwargs):
    return subprocess.Popen(
        [*TOOL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


class RunTest:
    @pytest.fixture(scope="class")
    def resumed(self, suite, tmp_path_factory):
        """The suite after SIGKILL in the middle of its second run, and the same command once more."""
        output = tmp_path_factory.mktemp("output")
        arguments = [f"--suite={suite}", f"--output={output}", "--seeds=3"]
        process = reproduce(*arguments, start_new_session=True)
        second = Checkpoints(str(output / "attention_8-seed3"))
        while not [step for step in second.steps() if step]:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at = second.steps()[-1]
        before = (output / "none-seed3" / "log.txt").read_text(), (output / "results" / "none-seed3.json").read_text()
        process = reproduce(*arguments)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        return output, killed_at, before, stdout, stderr

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
        for name in ("agreement", "gamma_generator", "gamma_discriminator", "deviation_over_z"):
            assert record["curves"][name]["steps"] == [20, 40, 60]
            assert record["final"][name] == record["curves"][name]["values"][-1]
        without_attention = json.loads((resumed[0] / "results" / "none-seed3.json").read_text())
        assert without_attention["curves"].keys() == {"agreement", "deviation_over_z"}

    def test_last_grid_of_samples_lies_beside_the_record(self, resumed):
        kept = (resumed[0] / "results" / "attention_8-seed3.png").read_bytes()
        assert kept == (resumed[0] / "attention_8-seed3" / "samples" / "00000060.png").read_bytes()

    def test_table_follows_from_the_records_alone(self, resumed, tmp_path):
        output, _, _, stdout, _ = resumed
        for path in (output / "results").glob("*.json"):
            shutil.copy(path, tmp_path)
        text = tool.write_table(str(tmp_path))
        assert text == stdout
        for name in ("table.md", "table.csv"):
            assert (tmp_path / name).read_bytes() == (output / "results" / name).read_bytes()

    def test_plot_is_drawn_where_matplotlib_is(self, resumed):
        drawn = tool.write_plot(str(resumed[0] / "results"))
        assert drawn == (importlib.util.find_spec("matplotlib") is not None)
        assert drawn == (resumed[0] / "results" / "plot.png").exists()

    def test_record_of_another_experiment_is_not_taken_for_this_one(self, resumed, suite, tmp_path):
        other = tmp_path / "tiny"
        shutil.copytree(suite, other)
        (other / "none.cfg").write_text(TINY.format(position=0) + "--beta1=0.5\n")
        loaded = tool.load_suite(str(other))
        with pytest.raises(UserError, match=r"another experiment \(--beta1=default, not 0.5\)"):
            tool.run_suite(loaded, tool.plan(loaded, "3"), str(tmp_path / "output"), str(resumed[0] / "results"))

    def test_run_of_another_experiment_is_not_taken_for_this_one(self, resumed, suite, tmp_path):
        """Not even where the edited flagfile asks for a default."""
        other = tmp_path / "tiny"
        shutil.copytree(suite, other)
        (other / "none.cfg").write_text(TINY.format(position=0).replace("--z_dim=4", ""))
        loaded = tool.load_suite(str(other))
        with pytest.raises(UserError, match="was trained with --z_dim=4, not 128"):
            tool.run_suite(loaded, tool.plan(loaded, "3"), str(resumed[0]), str(tmp_path / "results"))


class InterruptionTest:
    """With a stand-in for the commands: what the suite makes of their ends."""

    @pytest.fixture
    def run(self, suite, tmp_path, monkeypatch):
        def run(script):
            command = tmp_path / "command"
            command.write_text(f"#!/bin/sh\necho run >> {tmp_path}/calls\n{script}\n")
            command.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(command))
            loaded = tool.load_suite(str(suite))
            tool.run_suite(loaded, tool.plan(loaded), str(tmp_path / "output"), str(tmp_path / "results"))

        return run

    def test_exit_75_of_a_run_ends_the_suite_with_75(self, run, tmp_path):
        with pytest.raises(SystemExit) as end:
            run("exit 75")
        assert end.value.code == 75
        assert (tmp_path / "calls").read_text() == "run\n"

    def test_sigterm_is_passed_on(self, run, tmp_path):
        def terminate():
            while not (tmp_path / "ready").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate).start()
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            run(f"trap 'echo saved > {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
        assert end.value.code == 75
        assert (tmp_path / "saved").exists()
        assert (tmp_path / "calls").read_text() == "run\n"
        assert signal.getsignal(signal.SIGTERM) == before

    def test_failure_is_told_and_ends_the_suite(self, run, tmp_path):
        with pytest.raises(UserError, match="none-seed0: sagan-train ended with code 1: no disk"):
            run("echo 'error: no disk'; exit 1")
        assert (tmp_path / "calls").read_text() == "run\n"

    def test_divergence_is_a_result(self, run, tmp_path):
        run("echo 'error: Step 7 is not finite: generator_loss is nan.'; exit 1")
        assert (tmp_path / "calls").read_text() == "run\nrun\n"  # Both arms, and no evaluation.
        text = (tmp_path / "results" / "table.md").read_text()
        assert "| none | 1 (1 diverged) |" in text
        assert "- none, seed 0: Step 7 is not finite: generator_loss is nan." in text

    def test_run_waits_for_the_process_of_a_killed_suite(self, suite, tmp_path):
        """The lock passes to the command: it outlives the suite that took it."""
        with tool.Commands() as commands, tool.locked(str(tmp_path), commands) as lock:
            left = subprocess.Popen(["sleep", "1.5"], pass_fds=[lock])
        began = time.monotonic()
        with tool.Commands() as commands, tool.locked(str(tmp_path), commands):
            assert left.poll() is not None or time.monotonic() - began > 1
        left.wait()


class PlanTest:
    def test_every_arm_comes_with_the_first_seed_before_the_next(self, suite):
        names = [job.name for job in tool.plan(tool.load_suite(str(suite)), "5,2")]
        assert names == ["none-seed5", "attention_8-seed5", "none-seed2", "attention_8-seed2"]

    @pytest.mark.parametrize("shards", [1, 2, 3, 30])
    def test_shards_partition_the_suite(self, shards):
        study = tool.load_suite(str(ROOT / "flags" / "study"))
        parts = [[job.name for job in tool.plan(study, "0,1,2", "", f"{i}/{shards}")] for i in range(1, shards + 1)]
        assert sorted(name for part in parts for name in part) == sorted(job.name for job in tool.plan(study, "0,1,2"))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_arms_of_the_same_settings_share_a_run(self):
        study = tool.load_suite(str(ROOT / "flags" / "study"))
        assert ("none", "sn_gd_ttur") in [job.names for job in tool.plan(study)]
        (job,) = tool.plan(study, "0", "sn_gd_ttur")
        assert job.name == "none-seed0"

    def test_arms_that_differ_in_intra_fid_or_name_alone_share_a_run(self):
        jobs = {job.names: job for job in tool.plan(tool.load_suite(str(ROOT / "flags" / "paper")))}
        assert jobs["attention_64", "table2_sagan"].evaluation() == {"intra_fid_samples": 50}
        assert jobs["attention_32",].evaluation() == {}
        assert ("none", "sn_gd_ttur") in jobs
        assert len(jobs) == 11

    def test_refuses_what_it_cannot_plan(self, suite):
        loaded = tool.load_suite(str(suite))
        for arguments, text in (
            (("0", "attention_9"), "attention_9 is none of the suite's: none, attention_8"),
            (("0,0",), "--seeds=0,0"),
            (("a",), "--seeds=a"),
            (("0", "", "0/2"), "--shard=0/2"),
            (("0", "", "3/2"), "--shard=3/2"),
            (("0", "", "1"), "--shard=1 "),
        ):
            with pytest.raises(UserError, match=text):
                tool.plan(loaded, *arguments)


class ScaleTest:
    def test_places_follow_the_image_size(self):
        suite = tool.load_suite(str(ROOT / "flags" / "paper"), str(ROOT / "flags" / "scale" / "twins32.cfg"))
        assert suite.left_out.keys() == {"attention_8", "attention_16", "residual_8", "residual_16"}
        assert suite.left_out["attention_8"] == "8 of 128 px is 2 of 32 px"
        assert suite.scale["places"] == {"32": 8, "64": 16}
        places = {name: arm.config.attention_resolution for name, arm in suite.arms.items()}
        assert (places["attention_64"], places["attention_32"], places["residual_64"], places["none"]) == (16, 8, 16, 0)
        with pytest.raises(UserError, match="attention_16 does not exist at this scale: 16 of 128 px is 4 of 32"):
            tool.plan(suite, "0", "attention_16")

    def test_settings_replace_those_of_every_arm(self):
        suite = tool.load_suite(str(ROOT / "flags" / "paper"), str(ROOT / "flags" / "scale" / "twins32.cfg"))
        for arm in suite.arms.values():
            assert (arm.config.dataset, arm.config.gf_dim, arm.config.train_steps) == ("twins", 8, 4000)
            assert arm.config.num_classes == -1
        assert suite.arms["baseline"].config.generator_learning_rate == 2e-4

    def test_every_scale_fits_a_suite_of_its_size(self):
        for path in (ROOT / "flags" / "scale").glob("*.cfg"):
            suite = tool.load_suite(str(ROOT / "flags" / "study"), str(path))
            assert not suite.left_out
            assert suite.arms["attention_16"].config.attention_resolution == 16

    def test_may_not_decide_in_what_arms_differ(self, tmp_path):
        folder = write_suite(tmp_path / "suite", a=["--beta1=0.1"], b=["--beta1=0.2"])
        (tmp_path / "scale.cfg").write_text("--beta1=0.5\n")
        with pytest.raises(UserError, match=r"sets --beta1, in which the arms .* differ"):
            tool.load_suite(folder, str(tmp_path / "scale.cfg"))

    def test_title_says_the_scale(self):
        record = made("none", 0, 1.0)
        record["scale"] = {"name": "small", "settings": {"image_size": 32, "gf_dim": 8}, "places": {"64": 16}}
        record["left_out"] = {"attention_8": "8 of 128 px is 2 of 32 px"}
        text = tool.markdown([record])
        assert text.startswith("# made at scale small (image_size=32, gf_dim=8)\n")
        assert "Places of the block: 64 became 16." in text
        assert "Left out: attention_8 (8 of 128 px is 2 of 32 px)." in text


def made(arm, seed, fid, agreement=None, **changes):
    """Returns a record as if a run had come to these values."""
    curves = {"agreement": {"steps": [1], "values": [agreement]}} if agreement is not None else {}
    return {
        "arm": arm,
        "also": [],
        "seed": seed,
        "suite": "made",
        "scale": {},
        "left_out": {},
        "settings": {},
        "versions": {"keras": "3"},
        "commits": ["0" * 40],
        "machine": "none",
        "seconds": {"train": 60.0, "evaluate": 1.0},
        "diverged": "",
        "metrics": {"fid": fid},
        "protocol": {},
        "final": {"agreement": agreement} if agreement is not None else {},
        "agreement_first_above_half": 1 if (agreement or 0) > 0.5 else None,
        "curves": curves,
        **changes,
    }


class TableTest:
    @pytest.mark.parametrize("degrees", [1, 2, 2.7, 4, 30, 1000])
    def test_quantiles_are_those_of_student(self, degrees):
        for probability in (0.6, 0.975, 0.995):
            expected = scipy.stats.t.ppf(probability, degrees)
            assert tool.student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-4)

    def test_interval_is_that_of_welch(self):
        rng = np.random.default_rng(0)
        values, control = rng.normal(3, 2, 5), rng.normal(1, 0.5, 3)
        expected = scipy.stats.ttest_ind(values, control, equal_var=False).confidence_interval(0.95)
        delta, low, high = tool.difference(values, control)
        assert delta == pytest.approx(values.mean() - control.mean())
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-4)

    def test_one_run_has_no_interval(self):
        assert np.isnan(tool.difference(np.array([1.0]), np.array([1.0, 2.0]))[1:]).all()

    def test_rows_hold_mean_spread_and_every_run(self):
        records = [made("none", 0, 10.0, 0.1), made("none", 1, 12.0, 0.7), made("attention_8", 0, 5.0, 0.9)]
        text = tool.markdown(records)
        assert "| none | 2 | 0.400 ± 0.424 | 1 (1 of 2 runs) | 11.00 ± 1.41 | 1.0 |" in text
        assert "| attention_8 | 1 | 0.900 | 1 | 5.00 | 1.0 |" in text
        assert "| attention_8 | none | +0.500 | -6.00 |" in text
        assert "| none | 0 | 0.100 | never | 10.00 | 1.0 |" in text

    def test_minutes_are_summarised_by_their_median(self):
        records = [made("none", seed, 10.0, seconds={"train": 60.0 * minutes}) for seed, minutes in enumerate((7.0, 9.0, 142.0))]
        assert "| none | 3 | 10.00 ± 0.00 | 9.0 |" in tool.markdown(records)

    def test_settings_that_all_runs_share_are_told(self):
        records = [made("none", 0, 1.0), made("attention_8", 0, 1.0)]
        records[0]["settings"] = {"train_steps": 9, "gf_dim": 2}
        records[1]["settings"] = {"train_steps": 9, "gf_dim": 2, "beta1": 0.5}
        assert "Settings of every run: train_steps=9, gf_dim=2." in tool.markdown(records)

    def test_shared_run_is_in_the_row_of_each_arm(self):
        text = tool.markdown([made("none", 0, 10.0, also=["sn_gd_ttur"])])
        assert "| none | 1 | 10.00 | 1.0 |" in text
        assert "| sn_gd_ttur | 1 | 10.00 | 1.0 |" in text
        assert "| none = sn_gd_ttur | 0 | 10.00 | 1.0 |" in text
        assert "Difference" not in text

    def test_csv_holds_the_same_numbers(self):
        records = [made("none", seed, fid) for seed, fid in enumerate((10.0, 12.0))] + [
            made("attention_8", seed, fid) for seed, fid in enumerate((4.0, 5.0))
        ]
        line = next(line for line in tool.comma_separated(records).splitlines() if line.startswith("attention_8,fid"))
        cells = line.split(",")
        assert cells[2:7] == ["2", "4.5", "0.707107", "none", "-6.5"]
        low, high = tool.difference(np.array([4.0, 5.0]), np.array([10.0, 12.0]))[1:]
        assert [float(cells[7]), float(cells[8])] == pytest.approx([low, high], rel=1e-5)
        assert cells[9:] == ["0 1", "4 5"]

    def test_steps_of_stabilisation_are_compared_with_the_baseline(self):
        records = [made("none", 0, 10.0, also=["sn_gd_ttur"]), made("baseline", 0, 30.0), made("sn_gd", 0, 25.0)]
        text = tool.markdown(records)
        assert "| sn_gd | baseline | -5.00 |" in text
        assert "| sn_gd_ttur | baseline | -20.00 |" in text
        assert "| baseline | none |" not in text

    def test_different_suites_are_not_mixed(self, tmp_path):
        for number, suite in enumerate(("a", "b")):
            (tmp_path / f"none-seed{number}.json").write_text(json.dumps(made("none", number, 1.0, suite=suite)))
        with pytest.raises(UserError, match="different suites"):
            tool.write_table(str(tmp_path))

    def test_damaged_record_is_named(self, tmp_path):
        (tmp_path / "none-seed0.json").write_text("{")
        with pytest.raises(UserError, match=r"none-seed0\.json cannot be read"):
            tool.write_table(str(tmp_path))
        (tmp_path / "none-seed0.json").write_text('{"arm": "none"}')
        with pytest.raises(UserError, match=r"none-seed0\.json is not the record of a run"):
            tool.write_table(str(tmp_path))

    def test_published_tables_are_those_of_their_records(self):
        directories = {path.parent for path in (ROOT / "results").rglob("*-seed*.json")}
        assert directories
        for directory in directories:
            records = tool.read_records(str(directory))
            assert (directory / "table.md").read_text(encoding="utf-8") == tool.markdown(records)
            assert (directory / "table.csv").read_text(encoding="utf-8") == tool.comma_separated(records)

    def test_readme_shows_the_published_table(self):
        section = (ROOT / "README.md").read_text(encoding="utf-8").split("### Our own study")[1].split("\n## ")[0]
        shown = [line for line in section.splitlines() if line.startswith("|")]
        published = (ROOT / "results" / "study" / "table.md").read_text(encoding="utf-8").split("Every run:")[0]
        assert shown == [line for line in published.splitlines() if line.startswith("|")]


class RefusalTest:
    def test_impossible_suites(self, tmp_path):
        for folder, text in (
            (str(tmp_path / "nowhere"), "holds no flagfiles"),
            (write_suite(tmp_path / "unknown", a=["--no_such_setting=1"]), "a.cfg cannot be read as a flagfile: .*no_such_setting"),
            (write_suite(tmp_path / "word", a=["beta1"]), "'beta1' is not a flag"),
            (write_suite(tmp_path / "wrong", a=["--beta1=2"]), "a.cfg: --beta1=2.0 must be"),
        ):
            with pytest.raises(UserError, match=text):
                tool.load_suite(folder)
        with pytest.raises(UserError, match=r"none\.cfg cannot be read"):
            tool.load_suite(str(ROOT / "flags" / "study"), str(tmp_path / "none.cfg"))

    def test_no_records(self, tmp_path):
        with pytest.raises(UserError, match="holds no records"):
            tool.write_table(str(tmp_path))

    def test_one_sentence_and_exit_code_1(self, tmp_path):
        process = reproduce(f"--suite={tmp_path}/nowhere", f"--output={tmp_path}/out")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        lines = [line for line in stderr.splitlines() if line.strip()]
        assert len(lines) == 1, stderr
        assert lines[0].startswith("error: ")
        assert "nowhere holds no flagfiles" in lines[0]
        assert not (tmp_path / "out").exists()
