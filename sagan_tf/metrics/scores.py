"""Inception Score, FID and KID by TF-GAN; precision, recall, density, coverage and class accuracy beside them.

The only module that imports TF-GAN. All functions take arrays of classifier outputs and return
Python floats; what was measured, and how, is the business of `evaluator.py`.
"""

import importlib
import importlib.util
import sys
import types

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

__all__ = [
    "NEIGHBOURS",
    "Moments",
    "class_accuracy",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "manifold_metrics",
    "tfgan",
]

_MODULE = "tensorflow_gan.python.eval.classifier_metrics"
# k of precision, recall, density and coverage.
NEIGHBOURS = 5


def _import_tfgan() -> types.ModuleType:
    """Imports TF-GAN's classifier metrics, also where `import tensorflow_gan` fails.

    TF-GAN 2.1.0 imports `tf.estimator` at its top, which TensorFlow 2.16 removed; its evaluation
    functions do not need it. So its two outer packages are registered without running their
    `__init__`, for the time of this import only. A TF-GAN that is already imported is used as it is.
    """
    registered = []
    if "tensorflow_gan" not in sys.modules:
        spec = importlib.util.find_spec("tensorflow_gan")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("tensorflow_gan is not installed: pip install tensorflow-gan")
        (root,) = spec.submodule_search_locations
        for name, path in (("tensorflow_gan", root), ("tensorflow_gan.python", f"{root}/python")):
            module = types.ModuleType(name)
            module.__path__ = [path]
            sys.modules[name] = module
            registered.append(name)
    try:
        return importlib.import_module(_MODULE)
    finally:
        for name in registered:
            del sys.modules[name]


tfgan = _import_tfgan()


def _check(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) < 2:
            raise ValueError(f"{name} must be [N, D] with N of at least 2, not {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")


def class_accuracy(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Share of the images that a classifier puts in the class they were generated for.

    Args:
      logits: `[N, K]`, of a classifier that tells these classes apart.
      labels: int `[N]`, the classes asked for.

    Returns:
      `class_accuracy`, of all images, and `class_accuracy_worst_class`, the least of a class.
    """
    found, labels = np.asarray(logits), np.asarray(labels)
    _check(logits=found)
    right = np.argmax(found, axis=1) == labels
    of_classes = [right[labels == label].mean() for label in np.unique(labels)]
    return {"class_accuracy": float(right.mean()), "class_accuracy_worst_class": float(min(of_classes))}


def inception_score(logits: ArrayLike, splits: int = 1) -> float:
    """Inception Score: `exp mean KL(p(y|x) || p(y))`, averaged over equal splits.

    Args:
      logits: `[N, classes]`; computed in float64, so that saturated logits do not underflow.
      splits: 1 is the paper's protocol (one split of all samples); many report the mean of 10.

    Raises:
      ValueError: if N does not divide into the splits, or a value is not finite.
    """
    logits = np.asarray(logits, np.float64)
    _check(logits=logits)
    if len(logits) % splits:
        raise ValueError(f"{len(logits)} samples do not divide into {splits} splits")
    # Beyond 300 below the largest, a probability is nothing to float64; TF-GAN's p log p would be 0 * -inf.
    logits = np.maximum(logits, logits.max(axis=1, keepdims=True) - 300.0)
    score = tfgan.classifier_score_from_logits
    return float(np.mean([score(tf.constant(part)).numpy() for part in np.split(logits, splits)]))


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Fréchet distance between Gaussians fitted to activations `[N, D]`: FID if they are Inception's pool_3.

    Raises:
      ValueError: if a value is not finite or the dimensions differ.
    """
    moments = [Moments(np.shape(activations)[1]).add(activations) for activations in (real, generated)]
    return moments[0].distance(moments[1])


def kernel_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Kernel Inception distance between activations `[N, D]`: unbiased MMD with a cubic kernel, in one block.

    Computed in float64.

    Raises:
      ValueError: if a value is not finite.
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    _check(real=real, generated=generated)
    largest = max(len(real), len(generated))
    distance = tfgan.kernel_classifier_distance_from_activations
    return float(distance(tf.constant(real), tf.constant(generated), max_block_size=largest, dtype=tf.float64))


class Moments:
    """Count, mean and covariance of activations, from batches of any size in constant memory.

    Attributes:
      count, mean, covariance: of everything added so far; the covariance divides by N - 1, as TF-GAN does.
    """

    def __init__(self, dimensions: int):
        self.count = 0
        self._sum = np.zeros(dimensions)
        self._products = np.zeros((dimensions, dimensions))
        self._shift = np.zeros(dimensions)

    def add(self, activations: ArrayLike) -> "Moments":
        """Adds a batch `[N, D]` and returns itself.

        Raises:
          ValueError: if a value is not finite, or D is another.
        """
        activations = np.asarray(activations, np.float64)
        if activations.ndim != 2 or activations.shape[1] != len(self._sum):
            raise ValueError(f"activations must be [N, {len(self._sum)}], not {activations.shape}")
        if not np.isfinite(activations).all():
            raise ValueError("the activations hold values that are not finite")
        if not self.count and len(activations):
            self._shift = activations.mean(axis=0)  # Sums around here keep their digits.
        for start in range(0, len(activations), 4096):
            part = activations[start : start + 4096] - self._shift
            self._sum += part.sum(axis=0)
            self._products += part.T @ part
        self.count += len(activations)
        return self

    @classmethod
    def of(cls, count: int, mean: np.ndarray, covariance: np.ndarray) -> "Moments":
        """Returns moments that are already known."""
        moments = cls(len(mean))
        moments.count, moments._shift = int(count), np.asarray(mean, np.float64)
        moments._products = np.asarray(covariance, np.float64) * (count - 1)
        return moments

    @property
    def mean(self) -> np.ndarray:
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        mean = self._sum / self.count
        return (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)

    def distance(self, other: "Moments") -> float:
        """Fréchet distance to other moments, in float64.

        Raises:
          ValueError: if either has fewer than two samples.
        """
        if min(self.count, other.count) < 2:
            raise ValueError("a Fréchet distance needs two samples on each side")
        trace = tfgan.trace_sqrt_product(tf.constant(self.covariance), tf.constant(other.covariance)).numpy()
        covariances = np.trace(self.covariance) + np.trace(other.covariance) - 2.0 * trace
        return float(np.sum((self.mean - other.mean) ** 2) + covariances)


def manifold_metrics(real: ArrayLike, generated: ArrayLike, neighbours: int = NEIGHBOURS, block: int = 1024) -> dict[str, float]:
    """Precision, recall, density and coverage from k-nearest-neighbour balls.

    precision: share of generated points inside some real point's ball; recall: the reverse;
    density: how many real balls hold a generated point, over k; coverage: share of real balls that
    hold one. A point's ball reaches to its k-th neighbour in its own set.

    Args:
      real: activations `[N, D]`.
      generated: activations `[M, D]`.
      neighbours: k.
      block: rows of the distance matrix held at once.

    Raises:
      ValueError: if there are not more points than neighbours, or a value is not finite.

    Reference: Kynkäänniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797 (k = 5).
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    _check(real=real, generated=generated)
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points than {min(len(real), len(generated))}")

    def distances(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
        return np.sqrt(np.maximum(squares, 0.0))

    def radii(points):
        parts = (distances(points[i : i + block], points) for i in range(0, len(points), block))
        return np.concatenate([np.partition(part, neighbours, axis=1)[:, neighbours] for part in parts])

    real_radii, generated_radii = radii(real), radii(generated)
    inside, covered, recalled, density = 0, np.zeros(len(real), bool), np.zeros(len(real), bool), 0
    for start in range(0, len(generated), block):
        between = distances(real, generated[start : start + block])  # [N, block]
        in_real = between < real_radii[:, None]
        inside += in_real.any(axis=0).sum()
        density += in_real.sum()
        covered |= in_real.any(axis=1)
        recalled |= (between < generated_radii[None, start : start + block]).any(axis=1)
    return {
        "precision": float(inside / len(generated)),
        "recall": float(recalled.mean()),
        "density": float(density / (neighbours * len(generated))),
        "coverage": float(covered.mean()),
    }
