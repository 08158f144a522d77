"""Checkpoints: written whole or not at all, verified, and read back by variable name.

A checkpoint is the directory `model_dir/checkpoints/STEP`, in TensorFlow's own format under plain names
(`generator/block_1/conv_1/kernel`, ...), so `tf.train.load_checkpoint` lists it. It is written under a temporary name,
flushed to the disk, read back, and only then renamed: a directory with a number for a name that holds `ckpt.index` is complete.
On an object store, which renames file by file, that one comes last; wherever a checkpoint is removed, it goes first.
"""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf import files
from sagan_tf.errors import UserError
from sagan_tf.networks import State

__all__ = ["Checkpoints", "mismatches"]

_PREFIX = "ckpt"
_INDEX = f"{_PREFIX}.index"
_TEMPORARY = "tmp-"
_PINNED = "pinned.json"


def mismatches(shapes: Mapping[str, list[int]], state: State, partial: bool = False) -> list[str]:
    """Returns what keeps saved variables from being this state, in order: missing, extra, of another shape.

    Args:
      shapes: shapes of the saved variables, by name.
      state: the variables to fill.
      partial: there may be more saved variables than the state has.
    """
    problems = [f"{name} is missing" for name in state if name not in shapes]
    if not partial:
        problems += [f"{name} is not part of the model" for name in shapes if name not in state]
    problems += [
        f"{name} is {shapes[name]} instead of {list(variable.shape)}"
        for name, variable in state.items()
        if name in shapes and list(variable.shape) != shapes[name]
    ]
    return sorted(problems)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      model_dir: the directory of the run.
      keep: how many of the most recent to keep.
      keep_every_steps: the first checkpoint of every so many steps is kept for good; 0: none.
    """

    def __init__(self, model_dir: str, keep: int = 5, keep_every_steps: int = 0):
        self.directory = files.join(model_dir, "checkpoints")
        self.keep = keep
        self.keep_every_steps = keep_every_steps
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        return sorted(int(name) for name in files.listing(self.directory) if name.isdigit() and self._is_complete(name))

    def _is_complete(self, name: str) -> bool:
        return files.exists(files.join(self.directory, name, _INDEX))

    def path(self, step: int) -> str:
        """Returns the prefix of a checkpoint, as `tf.train.load_checkpoint` takes it."""
        return files.join(self.directory, str(step), _PREFIX)

    def save(self, step: int, state: State) -> None:
        """Copies the state now and writes it in the background; `wait` waits for that.

        Raises:
          UserError: if the previous write failed (a full disk, say); checkpoints already written are not touched.
        """
        self.wait()
        names = sorted(state)
        values = [np.array(_value(state[name])) for name in names]
        self._pending = self._writer.submit(self._write, step, names, values)

    def wait(self) -> None:
        """Waits until the last `save` is on the disk.

        Raises:
          UserError: if it failed.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (OSError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            last = max(self.steps(), default="none")
            raise UserError(
                f"A checkpoint could not be written to {self.directory} ({reason}); free some space or choose another "
                f"--model_dir. The last complete checkpoint is that of step {last}."
            ) from error

    def _write(self, step: int, names: list[str], values: list[np.ndarray]) -> None:
        files.make_dirs(self.directory)
        for name in files.listing(self.directory):
            if name.startswith(_TEMPORARY) or (name.isdigit() and not self._is_complete(name)):
                files.remove(files.join(self.directory, name))
        temporary, final = (files.join(self.directory, name) for name in (f"{_TEMPORARY}{step}", str(step)))
        files.make_dirs(temporary)
        prefix = files.join(temporary, _PREFIX)
        try:
            with tf.device("/cpu:0"):
                tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
            for name in files.listing(temporary):
                files.sync(files.join(temporary, name))
            reader = _reader(prefix)
            for name, value in zip(names, values, strict=True):
                if not np.array_equal(reader.get_tensor(name), value, equal_nan=value.dtype.kind == "f"):
                    raise OSError(f"{name} reads back differently from what was written")
        except BaseException:
            files.remove(temporary)
            raise
        if files.is_dir(final):  # After a fallback, a run passes this step a second time.
            self._remove(step)
        files.move_dir(temporary, final, last=_INDEX)
        files.sync(self.directory)
        self._remove_old()

    def _remove_old(self) -> None:
        steps = self.steps()
        kept, period = set(steps[-self.keep :]) | self.pinned(), self.keep_every_steps
        if period:
            kept |= {min(s for s in steps if s // period == group) for group in {s // period for s in steps}}
        for step in set(steps) - kept:
            self._remove(step)

    def _remove(self, step: int) -> None:
        directory = files.join(self.directory, str(step))
        files.remove(files.join(directory, _INDEX))
        files.remove(directory)

    def pinned(self) -> set[int]:
        """Returns the steps that are kept whatever their age."""
        return set(self.pins().values())

    def pins(self) -> dict[str, int]:
        """Returns the steps that are kept whatever their age, by what they are kept for."""
        path = files.join(self.directory, _PINNED)
        try:
            return {str(name): int(step) for name, step in files.read_json(path).items()} if files.exists(path) else {}
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            logging.warning("%s is damaged (%s): no checkpoint is kept for good until it is written anew.", path, error)
            return {}

    def pin(self, name: str, step: int) -> None:
        """Keeps the checkpoint of this step under a name (such as `best_fid`) in place of the last so named.

        Raises:
          OSError: if that cannot be written.
        """
        files.write_json(files.join(self.directory, _PINNED), {**self.pins(), name: step})

    def restore(self, state: State, step: int | None = None, partial: bool = False) -> int | None:
        """Assigns every variable of the state from a checkpoint.

        A damaged newest checkpoint is passed over for the one before, with a warning.

        Args:
          state: variables by checkpoint name.
          step: the checkpoint's step; None: the newest that can be read.
          partial: the checkpoint may hold more variables than the state.

        Returns:
          The step restored, or None if there is no checkpoint at all.

        Raises:
          UserError: if the step is missing, no checkpoint can be read, or names or shapes differ.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise UserError(f"{self.directory} holds no checkpoint of step {step}; it has {steps or 'none'}.")
            steps = [step]
        for candidate in reversed(steps):
            try:
                values = self._read(candidate, state, partial)
            except (tf.errors.OpError, RuntimeError, OSError, IndexError) as error:  # IndexError: the file is cut off.
                reason = str(error).splitlines()[0]
                logging.warning("The checkpoint of step %d is damaged (%s); trying the one before.", candidate, reason)
                continue
            for name, variable in state.items():
                variable.assign(values[name])
            return candidate
        if steps:
            raise UserError(f"No checkpoint in {self.directory} can be read; all of {steps} are damaged.")
        return None

    def _read(self, step: int, state: State, partial: bool) -> dict[str, np.ndarray]:
        reader = _reader(self.path(step))
        shapes = reader.get_variable_to_shape_map()
        problems = mismatches(shapes, state, partial)
        if problems:
            raise UserError(
                f"The checkpoint {self.path(step)} is not of this configuration: {'; '.join(problems[:5])}"
                f"{' ...' if len(problems) > 5 else ''}."
            )
        return {name: reader.get_tensor(name) for name in state}


def _reader(prefix: str) -> Any:
    # What tf.train.load_checkpoint calls, which takes the prefix for a directory where names are all there is (ram://).
    return tf.compat.v1.train.NewCheckpointReader(prefix)


def _value(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    return tf.convert_to_tensor(variable.value if isinstance(variable, keras.Variable) else variable)
