"""Reading examples in Python from within `tf.data`: errors as sentences, and corrupt examples."""

import re
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf.errors import UserError

_MARK = "sagan_tf data error: "


class CorruptExample(Exception):
    """An example that cannot be read; the message says which and why."""


def data_error(message: str) -> UserError:
    """Returns an error that `recover` finds again after TensorFlow has wrapped it."""
    return UserError(f"{_MARK}{message}")


def recover(error: Exception) -> UserError | None:
    """Returns the sentence of a `data_error` inside a TensorFlow error, or None if there is none."""
    match = re.search(f"{_MARK}(.*)", str(error))
    return UserError(match.group(1).strip()) if match else None


class Loader:
    """Reads batches of examples through a Python function, one example at a time.

    Args:
      load: takes an index and returns the parts of one example; raises `CorruptExample`.
      types: TensorFlow type of each part; batches of it are stacked.
      num_examples: how many there are.
      max_corrupt: so many corrupt examples are passed over for the next good one, and reported;
        the one after ends the run.
    """

    def __init__(self, load: Callable[[int], tuple], types: tuple, num_examples: int, max_corrupt: int):
        self._load = load
        self._types = types
        self._num_examples = num_examples
        self._max_corrupt = max_corrupt
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, indices: tf.Tensor) -> list[tf.Tensor]:
        """Returns the parts of these examples, each with a leading dimension `[B]`."""

        def read(indices: np.ndarray) -> list[np.ndarray]:
            parts = zip(*(self._good(int(index)) for index in indices), strict=True)
            return [
                np.array(part, dtype=object if kind == tf.string else kind.as_numpy_dtype)
                for part, kind in zip(parts, self._types, strict=True)
            ]

        return tf.numpy_function(read, [indices], self._types, stateful=False)

    def _good(self, index: int) -> tuple:
        while True:
            if index not in self._corrupt:
                try:
                    return self._load(index)
                except CorruptExample as error:
                    self._count(index, error)
            index = (index + 1) % self._num_examples

    def _count(self, index: int, error: CorruptExample) -> None:
        with self._lock:
            self._corrupt.add(index)
            count = len(self._corrupt)
        if count > self._max_corrupt or count == self._num_examples:
            seen = f"; that is more than --skip_corrupt_records={self._max_corrupt} allows" if self._max_corrupt else ""
            remedy = "repair or remove it" + ("" if self._max_corrupt else ", or allow some with --skip_corrupt_records=N")
            raise data_error(f"{error}{seen}: {remedy}.")
        logging.warning("Passing over %s (%d of at most %d).", error, count, self._max_corrupt)


def require(ok: tf.Tensor, indices: tf.Tensor, describe: Callable[[int], str]) -> tf.Operation:
    """Fails with `describe(index)` of the first example that is not ok; both `[B]`."""

    def fail(ok: np.ndarray, indices: np.ndarray) -> np.ndarray:
        raise data_error(describe(int(indices[np.argmin(ok)])))

    def failing() -> tf.Tensor:
        return tf.numpy_function(fail, [ok, indices], tf.bool)

    return tf.cond(tf.reduce_all(ok), lambda: True, failing)


def to_images(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """Returns uint8 pixels `[B, size * size * 3]` or `[B, size, size, 3]` as float32 images in [-1, 1]."""
    pixels = tf.reshape(pixels, [-1, size, size, 3])
    return tf.cast(pixels, tf.float32) * (2.0 / 255.0) - 1.0
