"""Runs a suite: the package's commands in processes of their own, and a record of what each run came to."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging

import sagan_tf
from sagan_tf import files
from sagan_tf.errors import UserError
from sagan_tf.experiments.suite import Job, Suite
from sagan_tf.experiments.table import RunRecord, read, write_table
from sagan_tf.metrics.record import Record
from sagan_tf.runs.run import Run
from sagan_tf.runs.signals import EXIT_INTERRUPTED, stop_on_signal

__all__ = ["Commands", "Stopped", "locked", "run_suite"]

# Curves of a run that are kept in its record, by the tag they have in TensorBoard.
_CURVES = {
    "faces/agreement": "agreement",
    "gamma/generator": "gamma_generator",
    "gamma/discriminator": "gamma_discriminator",
    "samples/deviation_over_z": "deviation_over_z",
    "samples/diversity": "diversity",
}
_PACKAGES = ("sagan_tf", "tensorflow", "keras", "tensorflow-gan", "numpy")
_PACKAGE_DIR = os.path.dirname(os.path.abspath(sagan_tf.__file__))


class Stopped(Exception):
    """A run, or the suite, was told to stop; what was done is saved."""


def run_suite(suite: Suite, jobs: list[Job], output: str, results: str) -> None:
    """Makes every run that is not made yet; the table grows with each.

    Args:
      suite: that the jobs are of.
      jobs: runs to make, in this order.
      output: directory of the runs.
      results: directory of the records and the table.

    Raises:
      UserError: if a directory cannot be written, or a run fails for a reason other than divergence.
      SystemExit: with code 75 if it was interrupted; the same command goes on.
    """
    if files.is_remote(output):
        raise UserError(f"--output={output}: suites run in local directories, for their locks and logs; --results may be there.")
    for flag, directory in (("output", output), ("results", results)):
        with files.writing(flag, directory):
            files.make_dirs(directory)
    for name, why in suite.left_out.items():
        logging.info("%s is left out at this scale: %s", name, why)
    commands = Commands()
    with stop_on_signal(commands.stop):
        try:
            for number, job in enumerate(jobs, start=1):
                commands.check()
                done = _work(job, suite, output, results, commands)
                logging.info("%d of %d: %s %s", number, len(jobs), job.name, "done" if done else "was done before")
                if done:
                    write_table(results)
        except Stopped:
            logging.info("Interrupted; the same command goes on where this one stopped.")
            sys.exit(EXIT_INTERRUPTED)


def _work(job: Job, suite: Suite, output: str, results: str, commands: "Commands") -> bool:
    """Makes what is missing of a run, its record and its last grid of samples; returns whether anything was."""
    cache = job.config.stats_cache or files.join(output, "statistics")
    run = Run(directory := files.join(output, job.name), job.config.replace(model_dir=directory, stats_cache=cache))
    record, notes = (files.join(where, name) for where, name in ((results, f"{job.name}.json"), (directory, "reproduce.json")))
    with locked(directory, commands) as lock:
        if files.exists(record):
            _check_alike(job, record)
            return False
        progress: dict[str, Any] = {"seconds": {"train": 0.0, "evaluate": 0.0}, "commits": []}
        if files.exists(notes):
            progress = read(notes, progress.keys())
        if (now := _commit()) not in progress["commits"]:
            progress["commits"].append(now)

        given, diverged = dataclasses.asdict(Run.reconcile(run.config)), ""  # What was trained with other settings is refused.

        def execute(command: str, **more: int) -> str:
            """Returns why the training diverged; empty if it did not."""

            def tick(seconds: float) -> None:
                progress["seconds"][command] += seconds
                files.write_json(notes, progress)

            logging.info("%s: sagan-%s", job.name, command)
            arguments, log = [f"--{name}={value}" for name, value in {**given, **more}.items()], files.join(directory, "log.txt")
            code, error = commands.run(command, arguments, log, lock, tick)
            if code and not (command == "train" and "is not finite" in error):
                raise UserError(f"{job.name}: sagan-{command} ended with code {code}: {error or 'no reason given'} (see {log})")
            return error if code else ""

        if run.steps[-1:] != [job.config.train_steps]:
            diverged = execute("train")
        if not diverged and not _measured(job, run):
            execute("evaluate", checkpoint_step=job.config.train_steps, **job.evaluation())
        if grid := run.last_grid():
            files.write(files.join(results, f"{job.name}.png"), files.read(grid[1]))
        files.write_json(record, _record_of(job, suite, run, progress, diverged), indent=1)
    return True


def _check_alike(job: Job, path: str) -> None:
    """Refuses the record of another experiment under the same name."""
    before, wanted = read(path)["settings"], json.loads(json.dumps(job.settings()))
    for name in sorted({**before, **wanted}):
        if before.get(name) != wanted.get(name):
            was, asked = (settings.get(name, "default") for settings in (before, wanted))
            raise UserError(f"{path} is the record of another experiment (--{name}={was}, not {asked}): choose another --results.")


def _measured(job: Job, run: Run) -> Record | None:
    """Returns the evaluation of the last step as this job wants it; None if there is none."""
    wanted = {"num_samples": job.config.num_samples, "intra_fid_samples": job.arm.intra_fid_samples}
    for record in reversed(run.records):
        alike = all(record.protocol.get(name) == value for name, value in wanted.items())
        if alike and record.step == job.config.train_steps and record.protocol["real_images"] <= job.arm.real_images:
            return record
    return None


def _record_of(job: Job, suite: Suite, run: Run, progress: dict[str, Any], diverged: str) -> RunRecord:
    """Returns the record of a finished run: all that the table and the plot are made of."""
    measured = None if diverged else _measured(job, run)
    if not diverged and not measured:
        raise UserError(f"{run.directory} holds no evaluation of step {job.config.train_steps}: see its log.txt.")
    scalars = run.scalars()
    curves = {
        name: {"steps": scalars[tag][0].tolist(), "values": [round(value, 4) for value in scalars[tag][1].tolist()]}
        for tag, name in _CURVES.items()
        if tag in scalars
    }
    agreement = curves.get("agreement", {"steps": [], "values": []})
    passed = (step for step, value in zip(agreement["steps"], agreement["values"], strict=True) if value > 0.5)
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
    gpus = len(tf.config.list_physical_devices("GPU"))
    protocol = measured.protocol if measured else {}
    return {
        "arm": job.names[0],
        "also": list(job.names[1:]),
        "seed": job.config.seed,
        "suite": suite.name,
        "scale": suite.scale,
        "left_out": suite.left_out,
        "settings": job.settings(),
        "versions": versions,
        "commits": progress["commits"],
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, {gpus or 'no'} GPU",
        "seconds": {command: round(seconds, 1) for command, seconds in progress["seconds"].items()},
        "diverged": diverged,
        "metrics": dict(measured.values) if measured else {},
        "protocol": {name: value for name, value in protocol.items() if name != "versions"},
        "final": {name: curve["values"][-1] for name, curve in curves.items()},
        "agreement_first_above_half": next(passed, None),
        "curves": curves,
    }


class Commands:
    """Runs the package's commands, until it is told to stop."""

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen | None = None

    def stop(self) -> None:
        """Sends SIGTERM to the command that is running, which saves, and lets none follow; may be called in any thread."""
        self.stopped = True
        if process := self._process:
            process.terminate()

    def check(self) -> None:
        """Raises `Stopped` if it was told to stop."""
        if self.stopped:
            raise Stopped

    def run(self, command: str, arguments: Iterable[str], log: str, lock: int, tick: Callable[[float], None]) -> tuple[int, str]:
        """Runs `sagan-COMMAND`.

        Args:
          command: train or evaluate.
          arguments: of the command.
          log: file to add its output to.
          lock: descriptor of the run's lock, which the process inherits: it is held as long as one of both lives.
          tick: called with the seconds that have passed, every few.

        Returns:
          The exit code, and the last error that the command printed.

        Raises:
          Stopped: if it was interrupted.
        """
        self.check()
        path = os.pathsep.join([os.path.dirname(_PACKAGE_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])
        words, environment = [sys.executable, "-m", f"sagan_tf.commands.{command}", *arguments], {**os.environ, "PYTHONPATH": path}
        with open(log, "a", encoding="utf-8") as output:
            start = output.tell()
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock])
            self._process = process
            if self.stopped:  # It was told while the process was being made.
                process.terminate()
            since, code = time.monotonic(), None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=10)
                now = time.monotonic()
                tick(now - since)
                since = now
            self._process = None
        if code == EXIT_INTERRUPTED:
            raise Stopped
        self.check()
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            errors = [line.removeprefix("error: ").strip() for line in file if line.startswith("error: ")]
        return code, errors[-1] if errors else ""


@contextlib.contextmanager
def locked(directory: str, commands: Commands) -> Iterator[int]:
    """Holds the lock of a run; waits while another suite, or what is left of a killed one, works on it.

    Raises:
      Stopped: if the commands are told to stop while it waits.
    """
    files.make_dirs(directory)
    with open(files.join(directory, "lock"), "w", encoding="utf-8") as file:
        for waited in itertools.count():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    logging.info("%s is in the hands of another process: waiting for it.", directory)
                commands.check()
                time.sleep(1)
        yield file.fileno()


def _commit() -> str:
    """Returns the commit that the package is of, with a note if files were changed since; "unknown" outside git."""
    git = ["git", "--no-optional-locks", "-C", _PACKAGE_DIR]
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty= with changes"]
    try:
        return subprocess.run([*git, *describe], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
