"""The directory of a training run: its configuration, checkpoints, records, scalars and sample grids.

The one place that knows what the files of a run are called, but for `config.json` (config.py) and what is in `checkpoints/`
(checkpoints.py).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf import config as config_lib
from sagan_tf import files, networks, pixels, sampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics.record import Record, fingerprint
from sagan_tf.runs.checkpoints import Checkpoints

if TYPE_CHECKING:
    from sagan_tf.runs.scalars import Curve

__all__ = ["Networks", "Run", "load_run", "pretrained"]

_METRICS_FILE = "metrics.jsonl"
# Kept whatever its age: the checkpoint with the lowest FID of each protocol, that which is being evaluated, and the last
# whose samples were varied.
_BEST, _EVALUATING, _HEALTHY = "best_fid", "evaluating", "healthy"
# The settings that say where the images come from. Those at their defaults mean those of the run.
_IMAGES = ("dataset", "data_split", "data_dir")


class Networks(NamedTuple):
    """The trained networks of a checkpoint.

    Attributes:
      generator: the averaged one if `use_ema`.
      discriminator: of the same step.
      step: of the checkpoint.
      use_ema: whether the generator is the average.
    """

    generator: keras.Model
    discriminator: keras.Model
    step: int
    use_ema: bool


class Run:
    """A training run, by its directory.

    Args:
      directory: of the run.
      config: its settings.

    Attributes:
      directory: of the run.
      config: its settings.
      checkpoints: those of the run.
      measured: the record that this process added last; None: none.
    """

    measured: Record | None = None

    def __init__(self, directory: str, config: Config):
        self.directory = directory
        self.config = config
        self.checkpoints = Checkpoints(directory, config.keep_checkpoints, config.keep_checkpoint_every_steps)

    @staticmethod
    def reconcile(config: Config) -> Config:
        """Returns the settings with which the run that `config.model_dir` names goes on; `config` itself if there is none yet.

        All fields of `config` count as given, so that what it says is what happens, or is refused. Only where the images
        come from may be left at its default: a run goes on with those it was trained on. To go on without repeating any
        settings, take `load_run(directory).config.replace(...)`.

        Raises:
          UserError: if `config` would make it another experiment.
        """
        if not config_lib.is_saved(config.model_dir):
            return config
        given = dataclasses.asdict(config)
        for name in _IMAGES:
            if given[name] == getattr(Config, name):
                del given[name]
        return config_lib.reconcile(config_lib.load(config.model_dir), given)

    @classmethod
    def create(cls, config: Config) -> "Run":
        """Makes the run that `config.model_dir` names, or goes on with it; its settings are saved there.

        Raises:
          UserError: if the directory cannot be written.
        """
        with files.writing("model_dir", config.model_dir):
            files.write(files.join(config.model_dir, config_lib.CONFIG_FILE), config.to_json())
        return cls(config.model_dir, config)

    @property
    def name(self) -> str:
        """The last part of the directory."""
        return files.name_of(self.directory)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return self.checkpoints.steps()

    # Results.

    @property
    def records(self) -> list[Record]:
        """What was measured of this run, oldest first; a line that is no record, such as half of one, is passed over.

        Raises:
          UserError: if the file cannot be read.
        """
        path, found = files.join(self.directory, _METRICS_FILE), []
        try:
            lines = files.read(path).splitlines() if files.exists(path) else []
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): put that right, or remove it.") from error
        for number, line in enumerate(lines, start=1):
            try:
                found += [Record.from_json(line.decode())] if line.strip() else []
            except ValueError as error:
                logging.warning("Line %d of %s is passed over: it is damaged (%s).", number, path, error)
        return found

    def add(self, record: Record) -> bool:
        """Adds a record to the run and its TensorBoard, and keeps the checkpoint if its FID is the lowest so far.

        Args:
          record: with a step.

        Returns:
          Whether its FID is the lowest under its protocol. A run that cannot be written is left as it is, with a warning.
        """
        alike = [other for other in self.records if other.protocol == record.protocol and other.step != record.step]
        self.measured = record
        best = all(record.values["fid"] < other.values["fid"] for other in alike)
        with files.told(f"The result of step {record.step} cannot be recorded in {self.directory}", tf.errors.OpError):
            files.append_line(files.join(self.directory, _METRICS_FILE), record.to_json())
            writer = self.summary_writer(".metrics")
            with writer.as_default(record.step):
                for name, value in record.values.items():
                    tf.summary.scalar(f"metrics/{name}", value)
            writer.close()
            if best and record.step is not None:
                self.checkpoints.pin(f"{_BEST}-{fingerprint(record.protocol)[:8]}", record.step)
        return best

    def pin_evaluated(self, step: int) -> None:
        """Keeps the checkpoint that is being evaluated, in place of the last one.

        Raises:
          OSError: if the run cannot be written.
        """
        self.checkpoints.pin(_EVALUATING, step)

    def pin_healthy(self) -> None:
        """Keeps the newest checkpoint, whose samples are varied, in place of the last such.

        Raises:
          OSError: if the run cannot be written.
          UserError: if a checkpoint that was being written could not be.
        """
        self.checkpoints.wait()  # The newest may be on its way: which one is kept must not depend on the disk.
        if any(self.steps):  # The checkpoint of step 0 is no use to anyone.
            self.checkpoints.pin(_HEALTHY, self.steps[-1])

    @property
    def healthy_step(self) -> int | None:
        """The step of the last checkpoint whose samples were varied; None: there is none."""
        return self.checkpoints.pins().get(_HEALTHY)

    @property
    def statistics_dir(self) -> str:
        """The directory of cached statistics of real images."""
        return self.config.stats_cache or files.join(self.directory, "statistics")

    def intra_fid_file(self, step: int, digest: str) -> str:
        """Returns the file of the classes that intra-FID has done, of these weights at this step."""
        return files.join(self.directory, f"intra_fid-{step}-{digest}.json")

    # What training shows.

    @property
    def _summaries_dir(self) -> str:
        return files.join(self.directory, "summaries")

    @property
    def samples_dir(self) -> str:
        """The directory of sample grids, `STEP.png` each."""
        return files.join(self.directory, "samples")

    def summary_writer(self, suffix: str | None = None) -> tf.summary.SummaryWriter:
        """Returns a writer of the run's TensorBoard files.

        Raises:
          tf.errors.OpError: if they cannot be written.
        """
        return tf.summary.create_file_writer(self._summaries_dir, filename_suffix=suffix)

    def scalars(self) -> "dict[str, Curve]":
        """Returns the curves of the run's TensorBoard files, by tag."""
        from sagan_tf.runs.scalars import read_scalars  # TensorBoard takes a while to import.

        return read_scalars(self._summaries_dir)

    def save_grid(self, step: int, sheet: np.ndarray) -> None:
        """Writes the sample grid of a step, uint8 `[H, W, 3]`.

        Raises:
          OSError: if it cannot be written.
        """
        files.write(files.join(self.samples_dir, f"{step:08d}.png"), pixels.png(sheet))

    def last_grid(self) -> tuple[int, str] | None:
        """Returns step and path of the last sample grid; None if there is none."""
        grids = (name for name in files.listing(self.samples_dir) if re.fullmatch(r"\d+\.png", name))
        return max(((int(name[:-4]), files.join(self.samples_dir, name)) for name in grids), default=None)

    # The networks.

    def uses_ema(self, use_ema: bool | None = None) -> bool:
        """Returns whether the averaged generator is meant; None: if the run has one."""
        return bool(self.config.ema_decay if use_ema is None else use_ema)

    def networks(self, step: int | None = None, use_ema: bool | None = None) -> Networks:
        """Returns the trained networks, made in the current strategy's scope.

        Call them as `generator([z, labels], training=False)` and `discriminator([images, labels], training=False)`.

        Args:
          step: of the checkpoint; None: the newest that can be read.
          use_ema: take the averaged generator; None: if the run has one.

        Raises:
          UserError: if there is no such checkpoint, none at all, or no average.
        """
        if use_ema and not self.config.ema_decay:
            raise UserError(f"--model_dir={self.directory} was trained without an averaged generator (--ema_decay=0).")
        name = "ema_generator" if self.uses_ema(use_ema) else "generator"
        generator, discriminator = networks.generator(self.config), networks.discriminator(self.config)
        state = {**networks.model_state(name, generator), **networks.model_state("discriminator", discriminator)}
        restored = self.checkpoints.restore(state, step, partial=True)
        if restored is None:
            raise UserError(f"--model_dir={self.directory} holds no checkpoint yet: train first.")
        return Networks(generator, discriminator, restored, self.uses_ema(use_ema))

    def hold(self, networks: Networks) -> None:
        """Takes the networks of the newest checkpoint, which are then not read again."""
        self._newest = networks

    @functools.cached_property
    def _newest(self) -> Networks:
        return self.networks()

    @property
    def generator(self) -> keras.Model:
        """The generator of the newest checkpoint, the averaged one if the run has one."""
        return self._newest.generator

    @property
    def discriminator(self) -> keras.Model:
        """The discriminator of the newest checkpoint."""
        return self._newest.discriminator

    def sample(self, classes: Sequence[int] | None = None, count: int = 8, seed: int = 0, truncation: float = 0.0) -> np.ndarray:
        """Draws images from the newest checkpoint.

        Args:
          classes: to draw; None: all of them.
          count: images of each class.
          seed: of z.
          truncation: largest absolute value of a component of z; 0: none.

        Returns:
          uint8 `[len(classes) * count, H, W, 3]`, class by class.

        Raises:
          UserError: if a class is out of range, nothing is asked for, or there is no checkpoint.
        """
        known = max(self.config.num_classes, 1)
        wanted = np.arange(known) if classes is None else np.array(classes, np.int32)
        if not (len(wanted) and 0 <= wanted.min() <= wanted.max() < known):
            raise UserError(f"classes={wanted.tolist()} are not all classes of {self.directory}: they are 0 to {known - 1}.")
        if count < 1:
            raise UserError(f"count={count} must be at least 1.")
        labels = np.repeat(wanted, count)
        z = sampling.draw_z(tf.range(len(labels), dtype=tf.int64), self.config.z_dim, seed, truncation)
        return pixels.to_uint8(sampling.generate(self.generator, z, labels))


def load_run(directory: str) -> Run:
    """Opens a training run.

    ```python
    run = sagan_tf.load_run("runs/mine")
    images = run.sample(classes=[2], count=8, seed=0)  # uint8 [8, H, W, 3]
    print(run.config.image_size, run.steps, run.records[-1].values["fid"])
    ```

    Args:
      directory: of the run.

    Raises:
      UserError: if it is not the directory of a run.
    """
    return Run(directory, config_lib.load(directory))


def pretrained(name: str) -> Run:
    """Opens a trained run that comes with the package.

    Args:
      name: of the run.

    Raises:
      UserError: if there is none of that name.
    """
    raise UserError(f"There is no pretrained run called {name!r}: this version of sagan_tf comes with none; train one.")
