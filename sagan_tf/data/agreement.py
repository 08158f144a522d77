"""How alike the two things are that every image of a generated dataset carries: computed from the pixels alone."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["agreement"]


def agreement(first: np.ndarray, second: np.ndarray, labels: ArrayLike | None = None) -> float:
    """Returns how alike the two parts of an image are, compared with parts of different images.

    `1 - distance(parts of an image) / distance(parts of different images)`, the distance being the mean absolute
    difference of pixels and both means being over all images, or all pairs of images of one class. 1: the
    parts of every image are equal, as in the data. 0: no more alike than those of two images of the class,
    which includes images without variety. It can be negative.

    Args:
      first: one part of each image, `[N, ...]`.
      second: the other, of the same shape.
      labels: int `[N]`; None: one class.
    """
    first, second = (part.reshape(len(part), -1).astype(np.float64) for part in (first, second))
    labels = np.zeros(len(first), int) if labels is None else np.asarray(labels)
    pairs = np.abs(first - second).mean(axis=1)
    own, others = 0.0, 0.0
    for label in np.unique(labels):
        a, b = first[labels == label], second[labels == label]
        if len(a) > 1:
            total = sum(np.abs(row - b).mean(axis=1).sum() for row in a) - pairs[labels == label].sum()
            others += total / (len(a) - 1)
            own += pairs[labels == label].sum()
    return float(1.0 - own / others) if others > 1e-6 * len(first) else 0.0
