"""The training images nearest to generated ones: whether a generator has learned them by heart."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sagan_tf import data, pixels
from sagan_tf.metrics.classifiers import Classifier

__all__ = ["Nearest", "nearest_neighbours", "neighbours_sheet"]

_BATCH = 64


class Nearest:
    """The nearest of any number of vectors to each of some queries, seen batch by batch.

    Args:
      queries: `[N, D]`.
      count: K, how many to keep.

    Attributes:
      indices: int64 `[N, <=K]`, numbers of the vectors in the order of `add`, the nearest first; of equals the earlier.
      squares: float64 `[N, <=K]`, their squared Euclidean distances; exact for whole numbers such as pixels.
    """

    def __init__(self, queries: np.ndarray, count: int):
        self._queries = np.asarray(queries, np.float64)
        self._count = count
        self._seen = 0
        self.indices = np.zeros((len(queries), 0), np.int64)
        self.squares = np.zeros((len(queries), 0))

    def add(self, vectors: np.ndarray) -> None:
        """Takes the next vectors, `[B, D]`."""
        x, y = self._queries, np.asarray(vectors, np.float64)
        squares = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2.0 * x @ y.T, 0.0)  # [N, B]
        numbers = np.broadcast_to(self._seen + np.arange(len(y)), squares.shape)
        squares, numbers = (np.concatenate(pair, 1) for pair in ((self.squares, squares), (self.indices, numbers)))
        order = np.argsort(squares, axis=1, kind="stable")[:, : self._count]
        self.squares, self.indices = (np.take_along_axis(each, order, 1) for each in (squares, numbers))
        self._seen += len(y)


def nearest_neighbours(images: np.ndarray, source: data.Source, classifier: Classifier, count: int) -> tuple[Nearest, Nearest]:
    """Returns the nearest training images, in one pass over the data: by pixels, and by the classifier's features.

    Args:
      images: uint8 `[N, H, W, 3]`; pixels are compared as they are stored, 0..255.
      source: of the training images; numbers are its indices.
      classifier: whose features count.
      count: how many of each.
    """
    parts = [classifier.run(pixels.from_uint8(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
    by_pixels = Nearest(images.reshape(len(images), -1), count)
    by_features = Nearest(np.concatenate([pool.numpy() for _, pool in parts]), count)
    with tqdm(total=source.num_examples, desc="training images", unit="image", disable=None, leave=False) as bar:
        for batch in data.eval_dataset(source, _BATCH):
            real = pixels.to_uint8(batch["images"])
            by_pixels.add(real.reshape(len(real), -1))
            by_features.add(classifier.run(batch["images"])[1].numpy())
            bar.update(len(real))
    return by_pixels, by_features


def neighbours_sheet(
    images: np.ndarray, labels: Sequence[int], source: data.Source, by_pixels: Nearest, by_features: Nearest
) -> np.ndarray:
    """Draws each sample with its neighbours, a row each; below a neighbour its index and distance.

    The distance of pixels is their root mean square difference, 0 to 255; that of features is Euclidean.
    """
    scale = np.prod(images.shape[1:])
    rows, captions = [], []
    for i, image in enumerate(images):
        found = np.concatenate([by_pixels.indices[i], by_features.indices[i]])
        distances = np.sqrt(np.concatenate([by_pixels.squares[i] / scale, by_features.squares[i]]))
        rows.append([image, *pixels.to_uint8(source.examples(tf.constant(found))["images"])])
        captions.append(["", *(f"#{index}\n{distance:.4g}" for index, distance in zip(found, distances, strict=True))])
    count = by_pixels.indices.shape[1]
    heads = ["sample", *(f"{name} {n}" for name in ("pixels", "features") for n in range(1, count + 1))]
    return pixels.table(rows, [f"class {label}" for label in labels], heads, captions)
