r"""Runs a suite of flagfiles one after another, an arm each, and gathers the results into one table and a plot.

python tools/reproduce.py --suite=flags/study --output=runs/study --results=results/study --seeds=0,1,2
python tools/reproduce.py --suite=flags/paper --output=runs/paper --scale=flags/scale/twins32.cfg --shard=1/2
python tools/reproduce.py --tabulate --results=results/study

Each run is a `sagan-train` in OUTPUT/ARM-seedN, and then a `sagan-evaluate`; arms with the same settings share
one. A run that is finished leaves a record RESULTS/ARM-seedN.json, from which alone table.md, table.csv and
plot.png are made, and its last grid of samples, ARM-seedN.png. The same command goes on where a killed one
stopped; SIGTERM is passed on to the run, which saves, and ends the suite with code 75. `--scale` names a flagfile
whose settings replace those of every arm; the place of the block follows the image size, and an arm whose place
does not exist at that size is left out.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import glob
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import sagan_tf
from sagan_tf import config as config_lib
from sagan_tf.commands.train import EXIT_INTERRUPTED
from sagan_tf.config import Config, expand_flagfile
from sagan_tf.errors import UserError
from sagan_tf.runs import history
from sagan_tf.runs.checkpoints import Checkpoints, write_file
from sagan_tf.tables import attention_places

FLAGS = flags.FLAGS
# What the paper compares an arm with: the steps of stabilisation with the baseline, a block with none.
CONTROL = "none"
# The flagfile of what a suite's arms share; it is no arm.
BASE = "base"
CONTROLS = {"sn_gd": "baseline", "sn_gd_ttur": "baseline", "baseline": ""}
# Flags of sagan-evaluate that a flagfile may carry beside the settings, with their defaults there.
EVALUATION = {"intra_fid_samples": 0, "real_images": 50_000}
FREE = {field.name for field in dataclasses.fields(Config) if field.metadata["free"]}
# Curves of a run that are kept in its record, by the tag they have in TensorBoard.
CURVES = {
    "agreement": "twins/agreement",
    "gamma_generator": "gamma/generator",
    "gamma_discriminator": "gamma/discriminator",
    "deviation_over_z": "samples/deviation_over_z",
}


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      name: of the value.
      heading: above it.
      style: format of its numbers.
      compared: with the control; not where not every run has a value, or it is no outcome.
      signed: gamma is not: the convolution before it can turn its own sign.
      by_median: summarised by its median, since one run on a machine that was shared or asleep spoils a mean.
    """

    name: str
    heading: str
    style: str
    compared: bool = True
    signed: bool = True
    by_median: bool = False


COLUMNS = (
    Column("agreement", "agreement", ".3f"),
    Column("first_above_half", "first above 0.5 at step", ",.0f", compared=False),
    Column("deviation_over_z", "deviation over z", ".3f"),
    Column("fid", "FID", ".2f"),
    Column("inception_score", "IS", ".2f"),
    Column("intra_fid", "intra-FID", ".2f"),
    Column("precision", "precision", ".3f"),
    Column("recall", "recall", ".3f"),
    Column("gamma_generator", "size of G's gamma", ".3f", compared=False, signed=False),
    Column("gamma_discriminator", "size of D's gamma", ".3f", compared=False, signed=False),
    Column("minutes", "minutes of training", ".1f", compared=False, by_median=True),
)

# What a file has to hold to be taken for a record.
RECORD = {"arm", "also", "seed", "suite", "scale", "left_out", "settings", "versions", "commits", "machine", "seconds"}
RECORD |= {"diverged", "metrics", "protocol", "final", "agreement_first_above_half", "curves"}


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_string("suite", "", "Folder of flagfiles (*.cfg), an arm each.")
    flags.DEFINE_string("output", "", "Directory for the runs, one in ARM-seedN each.")
    flags.DEFINE_string("results", "", "Directory for the records, the table and the plot; empty: OUTPUT/results.")
    flags.DEFINE_string("scale", "", "Flagfile of settings that replace those of every arm.")
    flags.DEFINE_string("seeds", "0", "Seeds to run every arm with, separated by commas.")
    flags.DEFINE_string("arms", "", "Arms to run, separated by commas; empty: all of the suite.")
    flags.DEFINE_string("shard", "1/1", "i/n: run the i-th of n equal parts of the suite, for n machines.")
    flags.DEFINE_boolean("tabulate", False, "Make table and plot from the records of --results, and run nothing.")


# The suite: flagfiles become arms, arms and seeds become jobs.


def read_flagfile(path: str) -> dict[str, Any]:
    """Returns the settings that a flagfile names, and no defaults.

    Raises:
      UserError: if it is missing, or names something that is no setting.
    """
    define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    values = flags.FlagValues()
    defaults = {field.name: field.default for field in dataclasses.fields(Config)} | EVALUATION
    for name, default in defaults.items():
        define[type(default)](name, default, "", flag_values=values)
    try:
        rest = values([sys.argv[0], *expand_flagfile(path)])
    except flags.Error as error:
        raise UserError(f"{path} cannot be read as a flagfile: {error}") from error
    if len(rest) > 1:
        raise UserError(f"{path} cannot be read as a flagfile: {rest[1]!r} is not a flag.")
    return {name: values[name].value for name in defaults if values[name].present}


def natural(name: str) -> tuple:
    """Returns a sort key that puts the control first, and attention_8 before attention_16."""
    return name != CONTROL, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One experiment.

    Attributes:
      config: its settings.
      intra_fid_samples: images per class for intra-FID; 0: leave it out.
      real_images: to measure against, at most.
    """

    config: Config
    intra_fid_samples: int = EVALUATION["intra_fid_samples"]
    real_images: int = EVALUATION["real_images"]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Arm":
        """Returns the arm of these settings, those of the evaluation among them."""
        evaluation = {name: value for name, value in settings.items() if name in EVALUATION}
        return cls(Config(**{name: value for name, value in settings.items() if name not in EVALUATION}), **evaluation)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Experiments to be compared.

    Attributes:
      name: of the folder.
      arms: by name.
      scale: `{"name", "settings", "places"}` of the scale; empty: none.
      left_out: why an arm does not exist at this scale, by name.
    """

    name: str
    arms: dict[str, Arm]
    scale: dict[str, Any]
    left_out: dict[str, str]


def load_suite(folder: str, scale_file: str = "") -> Suite:
    """Reads a suite.

    Args:
      folder: of flagfiles.
      scale_file: flagfile of settings that replace those of every arm; empty: none.

    Raises:
      UserError: if there is no flagfile, one cannot be read or is impossible, or the scale would make
        arms equal that are compared.
    """
    paths = {os.path.basename(path).removesuffix(".cfg"): path for path in glob.glob(os.path.join(glob.escape(folder), "*.cfg"))}
    paths.pop(BASE, None)
    if not paths:
        raise UserError(f"--suite={folder} holds no flagfiles (*.cfg): name a folder such as flags/study.")
    given = {name: read_flagfile(paths[name]) for name in sorted(paths, key=natural)}
    replaced = read_flagfile(scale_file) if scale_file else {}
    original = {name: _arm(paths[name], settings) for name, settings in given.items()}
    for setting in sorted(set(replaced) - FREE - set(EVALUATION)):
        if len({getattr(arm.config, setting) for arm in original.values()}) > 1:
            raise UserError(f"{scale_file} sets --{setting}, in which the arms of {folder} differ: a scale may not decide that.")
    arms, left_out, places = {}, {}, {}
    for name, settings in given.items():
        before = original[name].config
        after = _arm(paths[name], settings | {"attention_resolution": 0} | replaced)
        if "attention_resolution" not in replaced and before.attention_resolution:
            size = after.config.image_size
            place = before.attention_resolution * size / before.image_size
            if place not in attention_places(size):
                left_out[name] = f"{before.attention_resolution} of {before.image_size} px is {place:g} of {size} px"
                continue
            if size != before.image_size:
                places[str(before.attention_resolution)] = int(place)
            after = dataclasses.replace(after, config=after.config.replace(attention_resolution=int(place)))
        arms[name] = after
    if not arms:
        raise UserError(f"{scale_file} leaves no arm of {folder}: their places do not exist at its image size.")
    scale_name = os.path.basename(scale_file).removesuffix(".cfg")
    scale = {"name": scale_name, "settings": replaced, "places": places} if scale_file else {}
    return Suite(os.path.basename(os.path.abspath(folder)), arms, scale, left_out)


def _arm(path: str, settings: dict[str, Any]) -> Arm:
    try:
        return Arm.of(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
      names: of the arms that it serves, which train alike. The first gives it its name.
      arm: what to do, with its seed.
    """

    names: tuple[str, ...]
    arm: Arm

    @property
    def name(self) -> str:
        """Returns ARM-seedN."""
        return f"{self.names[0]}-seed{self.config.seed}"

    @property
    def config(self) -> Config:
        """Returns the settings of the run."""
        return self.arm.config

    def settings(self) -> dict[str, Any]:
        """Returns what differs from the defaults, places and seed left out."""
        settings = {name: value for name, value in self.config.non_default().items() if name not in ("stats_cache", "seed")}
        return settings | self.evaluation()

    def evaluation(self) -> dict[str, int]:
        """Returns the flags for sagan-evaluate that differ from its defaults."""
        return {name: getattr(self.arm, name) for name, default in EVALUATION.items() if getattr(self.arm, name) != default}


def _numbers(text: str, flag: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\d+", part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--{flag}={text} is not a list of different numbers separated by commas.")
    return [int(part) for part in parts]


def plan(suite: Suite, seeds: str = "0", arms: str = "", shard: str = "1/1") -> list[Job]:
    """Returns the runs to make, all arms with the first seed, then all with the next.

    Args:
      suite: what to run.
      seeds: numbers separated by commas.
      arms: names separated by commas; empty: all.
      shard: "i/n", from 1/n to n/n: every n-th run from the i-th on.

    Raises:
      UserError: if an arm is unknown, or a list or the shard cannot be read.
    """
    wanted = arms.split(",") if arms else list(suite.arms)
    for name in wanted:
        if name in suite.left_out:
            raise UserError(f"--arms: {name} does not exist at this scale: {suite.left_out[name]}.")
        if name not in suite.arms:
            raise UserError(f"--arms: {name} is none of the suite's: {', '.join(suite.arms)}.")
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={shard} is not i/n with i from 1 to n.")
    groups: dict[Arm, list[str]] = {}
    for name, arm in suite.arms.items():  # Arms that differ in intra-FID alone share a run, which is measured for both.
        groups.setdefault(dataclasses.replace(arm, intra_fid_samples=0), []).append(name)
    jobs = []
    for seed in _numbers(seeds, "seeds"):
        for arm, names in groups.items():
            if set(names) & set(wanted):
                intra_fid = max(suite.arms[name].intra_fid_samples for name in names)
                config = arm.config.replace(seed=seed)
                jobs.append(Job(tuple(names), dataclasses.replace(arm, config=config, intra_fid_samples=intra_fid)))
    return jobs[int(match[1]) - 1 :: int(match[2])]


# Running: commands in processes of their own, and what they left behind.


class Stopped(Exception):
    """A run, or the suite, was told to stop; what was done is saved."""


class Commands:
    """Runs the package's commands; SIGTERM and SIGINT go to the one that is running, and end the suite."""

    def __init__(self):
        self.stopped = False
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Commands":
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_) -> None:
        self.stopped = True
        if self._process:
            self._process.send_signal(signal.SIGTERM)

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
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
        package = os.path.dirname(os.path.dirname(os.path.abspath(sagan_tf.__file__)))
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(log, "a", encoding="utf-8") as output:
            start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"sagan_tf.commands.{command}", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[lock],
            )
            if self.stopped:  # The signal came while the process was being made.
                self._process.send_signal(signal.SIGTERM)
            since = time.monotonic()
            code = None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._process.wait(timeout=10)
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
    """Holds the lock of a run; waits while another suite, or what is left of a killed one, works on it."""
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "lock"), "w", encoding="utf-8") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    logging.info("%s is in the hands of another process: waiting for it.", directory)
                waiting = True
                commands.check()
                time.sleep(1)
        yield file.fileno()


def commit() -> str:
    """Returns the commit that the package is of, with a note if files were changed since; "unknown" outside git."""
    git = ["git", "--no-optional-locks", "-C", os.path.dirname(os.path.abspath(sagan_tf.__file__))]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found} with changes" if changed else found


def _read_json(path: str, default: Any = None) -> Any:
    if default is not None and not os.path.exists(path):
        return default
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and run again.") from error


def curves(model_dir: str) -> dict[str, dict[str, list]]:
    """Returns the curves of a run that are kept, `{name: {"steps", "values"}}`, from its TensorBoard files."""
    found = history.read_scalars(os.path.join(model_dir, "summaries"))
    kept = {name: found[tag] for name, tag in CURVES.items() if tag in found}
    return {
        name: {"steps": steps.tolist(), "values": [round(value, 4) for value in values.tolist()]}
        for name, (steps, values) in kept.items()
    }


def _measured(job: Job, model_dir: str) -> dict[str, Any]:
    """Returns the evaluation of the last step as this job wants it; empty if there is none."""
    wanted = {"num_samples": job.config.num_samples, "intra_fid_samples": job.arm.intra_fid_samples}
    fitting = [
        record
        for record in history.read(model_dir)
        if record["step"] == job.config.train_steps
        and {key: record["protocol"].get(key) for key in wanted} == wanted
        and record["protocol"]["real_images"] <= job.arm.real_images
    ]
    return fitting[-1] if fitting else {}


def record_of(job: Job, suite: Suite, model_dir: str, progress: dict[str, Any], diverged: str = "") -> dict[str, Any]:
    """Returns the record of a finished run: all that the table and the plot are made of.

    Args:
      job: that is done.
      suite: that it is part of.
      model_dir: of the run.
      progress: `{"seconds": {command: number}, "commits": [...]}`.
      diverged: what the training said if it ended because a value was not finite.

    Raises:
      UserError: if it was neither evaluated nor diverged.
    """
    found = curves(model_dir)
    measured = {} if diverged else _measured(job, model_dir)
    if not diverged and not measured:
        raise UserError(f"{model_dir} holds no evaluation of step {job.config.train_steps}: see its log.txt.")
    agreement = found.get("agreement", {"steps": [], "values": []})
    passed = [step for step, value in zip(agreement["steps"], agreement["values"], strict=True) if value > 0.5]
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("sagan_tf", "tensorflow", "keras", "tensorflow-gan", "numpy")}
    gpus = len(tf.config.list_physical_devices("GPU"))
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
        "metrics": measured.get("values", {}),
        "protocol": {key: value for key, value in measured.get("protocol", {}).items() if key != "versions"},
        "final": {name: curve["values"][-1] for name, curve in found.items()},
        "agreement_first_above_half": passed[0] if passed else None,
        "curves": found,
    }


def work(job: Job, suite: Suite, output: str, results: str, commands: Commands) -> bool:
    """Makes one run as far as it is not made yet, and writes its record and its last grid of samples.

    Returns:
      Whether there was anything to do.

    Raises:
      UserError: if a command fails, or a record of the same name is of other settings.
      Stopped: if it was interrupted.
    """
    model_dir, path = os.path.join(output, job.name), os.path.join(results, f"{job.name}.json")
    with locked(model_dir, commands) as lock:
        if os.path.exists(path):
            before, wanted = _read_json(path)["settings"], json.loads(json.dumps(job.settings()))
            if before != wanted:
                name = min(key for key in {**before, **wanted} if before.get(key) != wanted.get(key))
                raise UserError(
                    f"{path} is the record of another experiment (--{name}={before.get(name, 'default')}, not "
                    f"{wanted.get(name, 'default')}): choose another --results."
                )
            return False
        notes = os.path.join(model_dir, "reproduce.json")
        progress = _read_json(notes, {"seconds": {"train": 0.0, "evaluate": 0.0}, "commits": []})
        if (now := commit()) not in progress["commits"]:
            progress["commits"].append(now)

        def run(command: str, arguments: list[str]) -> str:
            def tick(seconds: float) -> None:
                progress["seconds"][command] += seconds
                write_file(notes, json.dumps(progress) + "\n")

            logging.info("%s: sagan-%s", job.name, command)
            log = os.path.join(model_dir, "log.txt")
            code, error = commands.run(command, arguments, log, lock, tick)
            if code and not (command == "train" and "is not finite" in error):
                raise UserError(f"{job.name}: sagan-{command} ended with code {code}: {error or 'no reason given'} (see {log})")
            return error if code else ""

        cache = job.config.stats_cache or os.path.join(output, "statistics")
        given = dataclasses.asdict(job.config.replace(model_dir=model_dir, stats_cache=cache))
        if os.path.exists(os.path.join(model_dir, config_lib.CONFIG_FILE)):
            config_lib.reconcile(config_lib.load(model_dir), given)  # Refuses what was trained with other settings.
        settings, diverged = [f"--{name}={value}" for name, value in given.items()], ""
        if Checkpoints(model_dir).steps()[-1:] != [job.config.train_steps]:
            diverged = run("train", settings)
        if not diverged and not _measured(job, model_dir):
            step = f"--checkpoint_step={job.config.train_steps}"
            run("evaluate", [*settings, step, *(f"--{name}={value}" for name, value in job.evaluation().items())])
        if grid := history.last_grid(model_dir):
            shutil.copyfile(grid[1], os.path.join(results, f"{job.name}.png"))
        write_file(path, json.dumps(record_of(job, suite, model_dir, progress, diverged), indent=1) + "\n")
    return True


def run_suite(suite: Suite, jobs: list[Job], output: str, results: str) -> None:
    """Makes every run that is not made yet; the table grows with each.

    Raises:
      UserError: if a directory cannot be written, or a run fails for a reason other than divergence.
      SystemExit: with code 75 if it was interrupted; the same command goes on.
    """
    try:
        for directory in (output, results):
            os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}): choose another directory.") from error
    for name, why in suite.left_out.items():
        logging.info("%s is left out at this scale: %s", name, why)
    with Commands() as commands:
        try:
            for number, job in enumerate(jobs, start=1):
                commands.check()
                done = work(job, suite, output, results, commands)
                logging.info("%d of %d: %s %s", number, len(jobs), job.name, "done" if done else "was done before")
                if done:
                    write_table(results)
        except Stopped:
            logging.info("Interrupted; the same command goes on where this one stopped.")
            sys.exit(EXIT_INTERRUPTED)


# The table: records in, text out.


def read_records(results: str) -> list[dict[str, Any]]:
    """Returns the records of a directory, by arm and seed.

    Raises:
      UserError: if there are none, one cannot be read, or they are of different suites or scales.
    """
    paths = glob.glob(os.path.join(glob.escape(results), "*-seed*.json"))
    if not paths:
        raise UserError(f"--results={results} holds no records (ARM-seedN.json): run a suite first.")
    found = {path: _read_json(path) for path in paths}
    for path, record in found.items():
        if not isinstance(record, dict) or RECORD - record.keys():
            raise UserError(f"{path} is not the record of a run: move it elsewhere.")
    records = sorted(found.values(), key=lambda record: (natural(record["arm"]), record["seed"]))
    for record in records:
        if (record["suite"], record["scale"]) != (records[0]["suite"], records[0]["scale"]):
            raise UserError(f"--results={results} holds records of different suites or scales: keep them in different directories.")
    return records


def values_of(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a run that the table has columns for; `first_above_half` is NaN if it never was."""
    values = {**record["metrics"], **record["final"], "minutes": record["seconds"]["train"] / 60}
    if "agreement" in record["curves"]:
        first = record["agreement_first_above_half"]
        values["first_above_half"] = np.nan if first is None else first
    if record["diverged"]:  # What it had come to before says nothing about where it went.
        values = {"minutes": values["minutes"]}
    present = [column for column in COLUMNS if column.name in values]
    return {column.name: float(values[column.name] if column.signed else abs(values[column.name])) for column in present}


def student_quantile(probability: float, degrees: float) -> float:
    """Returns a quantile of Student's t distribution; the degrees of freedom need not be whole."""
    import tensorflow_probability as tfp  # It takes a second, and only a table of several runs needs it.

    return float(tfp.distributions.StudentT(np.float64(degrees), np.float64(0), np.float64(1)).quantile(np.float64(probability)))


def difference(values: np.ndarray, control: np.ndarray) -> tuple[float, float, float]:
    """Returns the difference of two means and its 95% interval (Welch's t): NaN for its ends with fewer than two runs in either."""
    delta = float(values.mean() - control.mean())
    if min(len(values), len(control)) < 2:
        return delta, np.nan, np.nan
    a, b = (part.var(ddof=1) / len(part) for part in (values, control))
    if a + b == 0:
        return delta, delta, delta
    degrees = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(control) - 1))
    half = student_quantile(0.975, degrees) * np.sqrt(a + b)
    return delta, delta - half, delta + half


def _by_arm(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    arms: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in records:
        for name in (record["arm"], *record["also"]):
            arms[name].append(record)
    return {name: arms[name] for name in sorted(arms, key=natural)}


def _control(name: str, arms: dict[str, list[dict[str, Any]]]) -> tuple[str, list[dict[str, Any]]]:
    """Returns name and runs of the arm that this one is compared with; none if it is one, has none, or shares its runs."""
    control = CONTROLS.get(name, CONTROL)
    found = arms.get(control, [])
    return (control, found) if found and found != arms[name] else ("", [])


def _names(record: dict[str, Any]) -> str:
    """Returns the names of all arms that a run stands for."""
    return " = ".join([record["arm"], *record["also"]])


def _columns(records: list[dict[str, Any]]) -> list[Column]:
    present = {name for record in records for name in values_of(record)}
    return [column for column in COLUMNS if column.name in present]


def _arrays(arm: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([value for value in (values_of(record).get(name) for record in arm) if value is not None])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(headings), _row(["---"] * len(headings)), *map(_row, rows)]


def _summary(values: np.ndarray, column: Column) -> str:
    """Returns mean and standard deviation, or the median; of those that are numbers, saying how many, where some are NaN."""
    numbers, style = values[np.isfinite(values)], column.style
    if not len(values):
        return ""
    if column.by_median:
        return f"{np.median(numbers):{style}}"
    text = "never" if not len(numbers) else f"{numbers.mean():{style}}"
    text += f" ± {numbers.std(ddof=1):{style}}" if len(numbers) > 1 else ""
    return text if len(numbers) == len(values) else f"{text} ({len(numbers)} of {len(values)} runs)"


def _intro(records: list[dict[str, Any]]) -> list[str]:
    """Returns title, scale, protocol and origin."""
    first = records[0]
    title, lines = f"# {first['suite']}", []
    if scale := first["scale"]:
        settings = ", ".join(f"{name}={value}" for name, value in scale["settings"].items())
        title += f" at scale {scale['name']} ({settings})"
        places = [f"{before} became {after}" for before, after in sorted(scale["places"].items(), key=lambda item: int(item[0]))]
        lines += ["", "The settings in the title replace those of every arm alike."]
        lines += [f"Places of the block: {', '.join(places)}."] if places else []
    left_out = {name: why for record in records for name, why in record["left_out"].items()}
    if left_out:
        lines += ["", f"Left out: {'; '.join(f'{name} ({left_out[name]})' for name in sorted(left_out, key=natural))}."]
    lines += ["", "Mean ± standard deviation over the seeds; of the minutes, the median. Made from the records beside it by"]
    lines += ["`python tools/reproduce.py --tabulate --results=DIR`."]
    protocols = sorted(
        {
            f"{p['num_samples']:,} samples against {p['real_images']:,} images of {p['dataset']}, classifier {p['classifier']}, "
            f"{p['resize']}, {p['batch_norm']} batch norm"
            for p in (record["protocol"] for record in records)
            if p
        }
    )
    lines += ["", f"Metrics: {'; '.join(protocols)}."] if protocols else []
    alike = {k: v for k, v in first["settings"].items() if all(k in r["settings"] and r["settings"][k] == v for r in records)}
    lines += ["", f"Settings of every run: {', '.join(f'{name}={value}' for name, value in alike.items())}."] if alike else []
    origins = sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()})
    commits = sorted({commit[:12] + commit[40:] for record in records for commit in record["commits"]})
    machines = sorted({record["machine"] for record in records})
    lines += ["", f"Made with {', '.join(origins)}; commit {', '.join(commits)}; {', '.join(machines)}."]
    return [title, *lines]


def markdown(records: list[dict[str, Any]]) -> str:
    """Returns the table of these records: every arm, its difference from its control, and every run."""
    arms, columns = _by_arm(records), _columns(records)
    headings = [column.heading for column in columns]
    rows = []
    for name, arm in arms.items():
        diverged = sum(bool(record["diverged"]) for record in arm)
        runs = f"{len(arm)}" + f" ({diverged} diverged)" * bool(diverged)
        rows.append([name, runs, *(_summary(_arrays(arm, column.name), column) for column in columns)])
    lines = [*_intro(records), "", *_table(["arm", "runs", *headings], rows)]

    compared = [column for column in columns if column.compared]
    rows = []
    for name, arm in arms.items():
        control_name, control_arm = _control(name, arms)
        if not control_arm:
            continue
        cells = []
        for column in compared:
            values, control = _arrays(arm, column.name), _arrays(control_arm, column.name)
            delta, low, high = difference(values, control) if len(values) and len(control) else (np.nan,) * 3
            interval = f" [{low:+{column.style}}, {high:+{column.style}}]" if np.isfinite(low) else ""
            cells.append(f"{delta:+{column.style}}{interval}" if np.isfinite(delta) else "")
        rows.append([name, control_name, *cells])
    if rows and compared:
        lines += ["", "Differences, with the 95% interval of Welch's t where there are two runs of each arm:", ""]
        lines += _table(["arm", "from", *(column.heading for column in compared)], rows)

    rows = []
    for record in records:
        values = values_of(record)
        cells = [f"{values[column.name]:{column.style}}" if column.name in values else "" for column in columns]
        cells = ["never" if cell == "nan" else cell for cell in cells]
        rows.append([_names(record), str(record["seed"]), *cells])
    lines += ["", "Every run:", "", *_table(["arm", "seed", *headings], rows)]
    notes = [f"- {record['arm']}, seed {record['seed']}: {record['diverged']}" for record in records if record["diverged"]]
    lines += ["", "Diverged, and in no mean:", "", *notes] if notes else []
    return "\n".join(lines) + "\n"


def comma_separated(records: list[dict[str, Any]]) -> str:
    """Returns the table as CSV, a line for each value of each arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "value", "runs", "mean", "sd", "control", "difference", "low", "high", "seeds", "values"])
    arms = _by_arm(records)

    def number(value: float) -> str:
        return f"{value:.6g}" if np.isfinite(value) else ""

    for name, arm in arms.items():
        for column in _columns(records):
            key = column.name
            pairs = [(record["seed"], values_of(record)[key]) for record in arm if key in values_of(record)]
            if not pairs:
                continue
            values = np.array([value for _, value in pairs])
            values = values[np.isfinite(values)]
            control_name, control_arm = _control(name, arms) if column.compared else ("", [])
            control = _arrays(control_arm, key)
            control = control[np.isfinite(control)]
            delta = difference(values, control) if len(values) and len(control) else (np.nan,) * 3
            mean = values.mean() if len(values) else np.nan
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            every = [" ".join(str(seed) for seed, _ in pairs), " ".join(number(value) or "never" for _, value in pairs)]
            writer.writerow([name, key, len(values), *map(number, (mean, spread)), control_name, *map(number, delta), *every])
    return text.getvalue()


def write_table(results: str) -> str:
    """Writes `table.md` and `table.csv` from the records of a directory, and returns the former's text.

    Raises:
      UserError: if there are no records, or they do not belong together.
    """
    records = read_records(results)
    text = markdown(records)
    write_file(os.path.join(results, "table.md"), text)
    write_file(os.path.join(results, "table.csv"), comma_separated(records))
    return text


def write_plot(results: str) -> bool:
    """Draws `plot.png`: the curves of every run and their mean by arm, and the scores of every run.

    Returns:
      Whether it was drawn: Matplotlib is an extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    arms: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in read_records(results):
        arms[_names(record)].append(record)
    curves_drawn = ("agreement", "deviation_over_z", "gamma_generator")
    drawn = [name for name in curves_drawn if any(name in r["curves"] for arm in arms.values() for r in arm)]
    points = [column for column in COLUMNS if column.name in ("agreement", "fid", "inception_score", "intra_fid")]
    points = [column for column in points if any(len(_arrays(arm, column.name)) for arm in arms.values())]
    columns = {column.name: column for column in COLUMNS}
    rows = max(1, (len(drawn) + len(points) + 1) // 2)
    figure = Figure(figsize=(12, 4.5 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, 2, squeeze=False).flat)
    for curve, axes in zip(drawn, panels, strict=False):
        for number, (name, arm) in enumerate(arms.items()):
            found = [r["curves"][curve] for r in arm if curve in r["curves"] and not r["diverged"]]
            values = [each["values"] if columns[curve].signed else np.abs(each["values"]) for each in found]
            for each, line in zip(found, values, strict=True):
                axes.plot(each["steps"], line, color=f"C{number}", alpha=0.25, linewidth=0.8)
            if found and all(each["steps"] == found[0]["steps"] for each in found):
                axes.plot(found[0]["steps"], np.mean(values, axis=0), color=f"C{number}", label=f"{name} ({len(found)})")
        axes.set(xlabel="step", ylabel=columns[curve].heading)
    for column, axes in zip(points, panels, strict=False):
        for number, (_, arm) in enumerate(arms.items()):
            values = _arrays(arm, column.name)
            axes.plot(values, [number] * len(values), "o", color=f"C{number}", alpha=0.6)
        axes.set(xlabel=column.heading, yticks=range(len(arms)), yticklabels=list(arms))
        axes.invert_yaxis()
    for axes in panels:
        axes.set_visible(False)
    if drawn:
        lines, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=4, title="arm (runs); bold: their mean")
    figure.savefig(os.path.join(results, "plot.png"), dpi=110, metadata={"Software": None})
    return True


def main(argv: list[str]) -> None:
    """Runs or tabulates what the flags say."""
    logging.set_verbosity(logging.INFO)
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is not a flag: flags start with -- (--help lists them).")
        results = FLAGS.results or (FLAGS.output and os.path.join(FLAGS.output, "results"))
        if FLAGS.tabulate:
            if not results:
                raise UserError("--results is missing: name a directory of records.")
        else:
            if not FLAGS.suite or not FLAGS.output:
                raise UserError("--suite and --output are needed: a folder of flagfiles, and a directory for the runs.")
            suite = load_suite(FLAGS.suite, FLAGS.scale)
            run_suite(suite, plan(suite, FLAGS.seeds, FLAGS.arms, FLAGS.shard), FLAGS.output, results)
        print(write_table(results), end="")
        if not write_plot(results):
            logging.info("No plot: install Matplotlib (pip install -e '.[report]') and run with --tabulate.")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
