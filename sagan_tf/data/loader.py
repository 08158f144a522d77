"""Reading examples in Python from within `tf.data`: errors as sentences, and corrupt examples."""

import itertools
import re
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf.errors import UserError
from sagan_tf.pixels import from_uint8

__all__ = ["CorruptExample", "Loader", "data_error", "recover"]

_MARK = "sagan_tf data error: "


class CorruptExample(Exception):
    """An example that cannot be read; the message says which and why."""


def data_error(message: str) -> UserError:
    """Returns an error that `recover` finds again after TensorFlow has wrapped it."""
    return UserError(_MARK + " ".join(message.split()))


def recover(error: Exception) -> UserError | None:
    """Returns the sentence of a `data_error` inside a TensorFlow error, or None if there is none."""
    match = re.search(f"{_MARK}(.*)", str(error))
    return UserError(match.group(1).strip()) if match else None


class Loader:
    """Reads batches of examples through a Python function, one example at a time.

    Args:
      load: takes an index and returns pixels, uint8 `[S, S, 3]` or `[S * S * 3]`, and a label;
        raises `CorruptExample`, or a `data_error` for what no example should be.
      image_size: S, in pixels.
      num_examples: how many there are.
      max_corrupt: so many corrupt examples are passed over for the next good one, and reported;
        the one after ends the run.
    """

    def __init__(self, load: Callable[[int], tuple[np.ndarray, int]], image_size: int, num_examples: int, max_corrupt: int):
        self._load = load
        self._image_size = image_size
        self._num_examples = num_examples
        self._max_corrupt = max_corrupt
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `images` float32 `[B, S, S, 3]` in [-1, 1] and `labels` int32 `[B]` of these examples."""

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pixels, labels = zip(*(self._good(int(index)) for index in indices), strict=True)
            return np.array(pixels, np.uint8), np.array(labels, np.int64)

        try:
            pixels, labels = tf.numpy_function(read, [indices], (tf.uint8, tf.int64), stateful=False)
        except UserError as error:  # Outside of a graph, TensorFlow hands it on as it is.
            raise recover(error) or error from error
        pixels = tf.reshape(pixels, [-1, self._image_size, self._image_size, 3])
        return {"images": from_uint8(pixels), "labels": tf.cast(tf.ensure_shape(labels, [None]), tf.int32)}

    def _good(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the example of this index, or the first after it that can be read."""
        for candidate in itertools.chain(range(index, self._num_examples), range(index)):
            if candidate not in self._corrupt:
                try:
                    return self._load(candidate)
                except CorruptExample as error:
                    self._report(candidate, error)
        raise data_error(f"None of the {self._num_examples} examples can be read.")

    def _report(self, index: int, error: CorruptExample) -> None:
        """Counts a corrupt example, and ends the run if that is one too many."""
        with self._lock:
            if index in self._corrupt:
                return  # Another thread met it at the same time.
            self._corrupt.add(index)
            count = len(self._corrupt)
        if count > self._max_corrupt:
            if self._max_corrupt:
                raise data_error(
                    f"{error}; that is more than --skip_corrupt_records={self._max_corrupt} allows: repair or remove it."
                )
            raise data_error(f"{error}: repair or remove it, or allow some with --skip_corrupt_records=N.")
        logging.warning("Passing over %s (%d of at most %d).", error, count, self._max_corrupt)
