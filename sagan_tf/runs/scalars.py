"""Curves: the scalars that a run wrote to TensorBoard, read back."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from sagan_tf import files

__all__ = ["Curve", "curve", "read_scalars"]

# Steps and values of a curve: int64 `[N]`, ascending, and float64 `[N]`.
Curve = tuple[np.ndarray, np.ndarray]


def read_scalars(directory: str) -> dict[str, Curve]:
    """Reads the scalars of all TensorBoard event files in a directory, one event at a time.

    A run that was continued from a checkpoint may have written a step twice: what was written later counts. A
    file that is cut off, as that of a running training may be, is read as far as it goes.

    Args:
      directory: that may be missing.

    Returns:
      Curves by tag.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for name in files.listing(directory):
        if "tfevents" not in name:
            continue
        for event in EventFileLoader(files.join(directory, name)).Load():
            for value in event.summary.value:
                tensor = value.tensor
                if tensor.dtype not in (tf.float32.as_datatype_enum, tf.float64.as_datatype_enum) or tensor.tensor_shape.dim:
                    continue
                points = found.setdefault(value.tag, {})
                if event.step not in points or event.wall_time >= points[event.step][0]:
                    points[event.step] = (event.wall_time, float(tensor_util.make_ndarray(tensor)))
    return {tag: curve({step: value for step, (_, value) in points.items()}) for tag, points in found.items()}


def curve(points: Mapping[int, float]) -> Curve:
    """Returns the curve of values by step."""
    steps = sorted(points)
    return np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64)
