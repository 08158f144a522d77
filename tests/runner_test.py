"""What a suite makes of the ends of its commands, with a stand-in for them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sagan_tf.errors import UserError
from sagan_tf.experiments import runner, suite


class InterruptionTest:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        def run(script):
            command = tmp_path / "command"
            command.write_text(f"#!/bin/sh\necho run >> {tmp_path}/calls\n{script}\n")
            command.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(command))
            folder = tmp_path / "tiny"
            folder.mkdir()
            for name, resolution in (("none", 0), ("attention_8", 8)):
                (folder / f"{name}.cfg").write_text(f"--image_size=32\n--attention_resolution={resolution}\n")
            loaded = suite.load_suite(str(folder))
            runner.run_suite(loaded, suite.plan(loaded), str(tmp_path / "output"), str(tmp_path / "results"))

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

    def test_run_waits_for_the_process_of_a_killed_suite(self, tmp_path):
        """The lock passes to the command: it outlives the suite that took it."""
        with runner.locked(str(tmp_path), runner.Commands()) as lock:
            left = subprocess.Popen(["sleep", "1.5"], pass_fds=[lock])
        began = time.monotonic()
        with runner.locked(str(tmp_path), runner.Commands()):
            assert left.poll() is not None or time.monotonic() - began > 1
        left.wait()
