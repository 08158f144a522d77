"""Suites: a folder's flagfiles become arms, arms and seeds become jobs."""

import dataclasses
import pathlib
import re
from typing import Any

from sagan_tf.architecture import attention_places
from sagan_tf.config import Config, expand_flagfile
from sagan_tf.errors import UserError

__all__ = ["CONTROL", "EVALUATION", "Arm", "Job", "Suite", "load_suite", "natural", "plan", "read_settings"]

# The arm with which the paper compares the others: no block.
CONTROL = "none"
# What the arms of a suite build on; no arm itself.
_BASE = "base"
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_FREE = {field.name for field in dataclasses.fields(Config) if field.metadata["free"]}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One experiment.

    Attributes:
      config: its settings.
      intra_fid_samples: images per class for intra-FID; 0: leave it out.
      real_images: to measure against, at most.
    """

    config: Config
    intra_fid_samples: int = 0
    real_images: int = 50_000


# Flags of sagan-evaluate that a flagfile may carry beside the settings, with their defaults there.
EVALUATION = {field.name: field.default for field in dataclasses.fields(Arm) if field.name != "config"}


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
        """ARM-seedN."""
        return f"{self.names[0]}-seed{self.config.seed}"

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.arm.config

    def settings(self) -> dict[str, Any]:
        """Returns what differs from the defaults, places and seed left out."""
        settings = {name: value for name, value in self.config.non_default().items() if name not in ("stats_cache", "seed")}
        return settings | self.evaluation()

    def evaluation(self) -> dict[str, int]:
        """Returns the flags for sagan-evaluate that differ from its defaults."""
        return {name: getattr(self.arm, name) for name, default in EVALUATION.items() if getattr(self.arm, name) != default}


def load_suite(folder: str, scale_file: str = "") -> Suite:
    """Reads a suite.

    Args:
      folder: of flagfiles (*.cfg), an arm each; `base.cfg` is none.
      scale_file: flagfile of settings that replace those of every arm; empty: none.

    Raises:
      UserError: if there is no flagfile, one cannot be read or is impossible, or the scale would make
        arms equal that are compared.
    """
    paths = {path.stem: str(path) for path in pathlib.Path(folder).glob("[!.]*.cfg") if path.stem != _BASE}
    if not paths:
        raise UserError(f"--suite={folder} holds no flagfiles (*.cfg): name a folder such as flags/study.")
    given = {name: read_settings(paths[name]) for name in sorted(paths, key=natural)}
    replaced = read_settings(scale_file) if scale_file else {}
    original = {name: _arm(settings, paths[name]) for name, settings in given.items()}
    for setting in sorted(set(replaced) - _FREE - set(EVALUATION)):
        if len({getattr(arm.config, setting) for arm in original.values()}) > 1:
            raise UserError(f"{scale_file} sets --{setting}, in which the arms of {folder} differ: a scale may not decide that.")
    arms, left_out, places = {}, {}, {}
    for name, settings in given.items():
        before, place = original[name].config, {}
        if before.attention_resolution and "attention_resolution" not in replaced:
            size = replaced.get("image_size", before.image_size)
            resolution = before.attention_resolution * size / before.image_size
            if resolution not in attention_places(size):
                left_out[name] = f"{before.attention_resolution} of {before.image_size} px is {resolution:g} of {size} px"
                continue
            place = {"attention_resolution": int(resolution)}
            if size != before.image_size:
                places[str(before.attention_resolution)] = int(resolution)
        arms[name] = _arm(settings | replaced | place, paths[name])
    if not arms:
        raise UserError(f"{scale_file} leaves no arm of {folder}: their places do not exist at its image size.")
    scale = {"name": pathlib.Path(scale_file).stem, "settings": replaced, "places": places} if scale_file else {}
    return Suite(pathlib.Path(folder).resolve().name, arms, scale, left_out)


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
    numbers = seeds.split(",")
    if not all(re.fullmatch(r"\d+", number) for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--seeds={seeds} is not a list of different numbers separated by commas.")
    groups: dict[Arm, list[str]] = {}
    for name, arm in suite.arms.items():  # Arms that differ in intra-FID alone share a run, which is measured for both.
        groups.setdefault(dataclasses.replace(arm, intra_fid_samples=0), []).append(name)
    jobs = []
    for number in numbers:
        for arm, names in groups.items():
            if set(names) & set(wanted):
                intra_fid = max(suite.arms[name].intra_fid_samples for name in names)
                config = arm.config.replace(seed=int(number))
                jobs.append(Job(tuple(names), dataclasses.replace(arm, config=config, intra_fid_samples=intra_fid)))
    return jobs[int(match[1]) - 1 :: int(match[2])]


def natural(name: str) -> tuple:
    """Returns a sort key that puts the control first, and attention_8 before attention_16."""
    return name != CONTROL, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def read_settings(path: str) -> dict[str, Any]:
    """Returns the settings that a flagfile names, those of the evaluation among them, and no defaults.

    Raises:
      UserError: if it is missing, or names something that is no setting.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)} | EVALUATION
    words, settings = expand_flagfile(path), {}
    passed_over = {name for word in words if word.startswith("--undefok=") for name in word.partition("=")[2].split(",")}
    for word in words:
        name, equals, text = word.lstrip("-").partition("=")
        if not equals and isinstance(defaults.get(name.removeprefix("no")), bool):
            name, equals, text = name.removeprefix("no"), "=", str(not name.startswith("no"))
        elif name not in defaults and name in {"undefok", *passed_over}:
            continue
        kind: Any = type(defaults.get(name) if equals and word.startswith("-") else None)
        try:
            settings[name] = _TRUTH[text.lower()] if kind is bool else kind(text)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a flagfile: {word!r} is not a flag and its value.") from error
    return settings


def _arm(settings: dict[str, Any], path: str) -> Arm:
    evaluation = {name: value for name, value in settings.items() if name in EVALUATION}
    try:
        config = Config(**{name: value for name, value in settings.items() if name not in EVALUATION})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Arm(config, **evaluation)
