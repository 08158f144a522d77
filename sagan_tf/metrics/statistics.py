"""What metrics need of the real images, computed once and kept in a cache."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from sagan_tf import data, files, pixels
from sagan_tf.errors import UserError
from sagan_tf.metrics import scores
from sagan_tf.metrics.classifiers import Classifier
from sagan_tf.metrics.record import fingerprint

__all__ = ["KEPT_ACTIVATIONS", "Key", "RealStatistics", "class_moments", "collect", "key_of", "mixed", "real_statistics"]

# Activations kept for KID, precision and recall; their cost grows with the square of this.
KEPT_ACTIVATIONS = 10_000
_BATCH = 64

# What statistics were computed from.
Key = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RealStatistics:
    """What is kept of the real images.

    Attributes:
      moments: of the features of all of them.
      inception_score: of the real images themselves.
      histogram: images per class.
      activations: features of the first `KEPT_ACTIVATIONS`.
      num_logits: classes that the classifier tells apart.
    """

    moments: scores.Moments
    inception_score: float
    histogram: np.ndarray
    activations: np.ndarray
    num_logits: int


def key_of(source: data.Source, classifier: Classifier, count: int) -> Key:
    """Identifies statistics of `count` images by content, so that they serve on another machine with other paths."""
    probe = np.unique(np.linspace(0, source.num_examples - 1, 32).astype(np.int64))
    examples = source.examples(tf.constant(probe))
    digest = hashlib.sha256(pixels.to_uint8(examples["images"]).tobytes())
    digest.update(examples["labels"].numpy().astype(np.int64).tobytes())
    return {
        "images": count,
        "of": source.num_examples,
        "image_size": examples["images"].shape[1],
        "content": digest.hexdigest()[:16],
        **classifier.protocol(),
    }


def real_statistics(source: data.Source, classifier: Classifier, key: Key, cache: str = "") -> RealStatistics:
    """Returns the statistics of real images, from the cache if they are there.

    Args:
      source: the real images.
      classifier: that sees them.
      key: of `key_of`; it says how many to take.
      cache: directory of cached statistics; empty: none.

    Raises:
      UserError: if a value is not finite.
    """
    arrays = _read_cache(cache, "real", key)
    if arrays is None:
        labels = []

        def outputs() -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
            for batch in mixed(source, key["images"], _BATCH):
                labels.append(batch["labels"].numpy())
                yield classifier.run(batch["images"])

        logits, pools = collect(outputs(), key["images"], "real images")
        moments = scores.Moments(pools.shape[1]).add(pools)
        classes = np.concatenate(labels)  # Without classes, they may be anything: -1 where a test split has none.
        arrays = {
            "count": np.int64(moments.count),
            "mean": moments.mean,
            "covariance": moments.covariance,
            "inception_score": np.float64(scores.inception_score(logits)),
            "histogram": np.bincount(classes[classes >= 0], minlength=source.num_classes),
            "activations": pools[:KEPT_ACTIVATIONS],
            "num_logits": np.int64(logits.shape[1]),
        }
        _write_cache(cache, "real", key, arrays)
    return RealStatistics(
        scores.Moments.of(arrays["count"], arrays["mean"], arrays["covariance"]),
        float(arrays["inception_score"]),
        arrays["histogram"],
        arrays["activations"],
        int(arrays["num_logits"]),
    )


def class_moments(source: data.Source, classifier: Classifier, key: Key, cache: str = "") -> list[scores.Moments]:
    """Returns the moments of each class of the real images, from the cache if they are there.

    Raises:
      UserError: if a class has fewer than two images.
    """
    arrays = _read_cache(cache, "classes", key)
    if arrays is None:
        moments: list[scores.Moments] = []
        with tqdm(total=source.num_examples, desc="real classes", unit="image", disable=None, leave=False) as bar:
            for batch in data.eval_dataset(source, _BATCH):
                pools = classifier.run(batch["images"])[1].numpy()
                moments = moments or [scores.Moments(pools.shape[1]) for _ in range(source.num_classes)]
                for label in np.unique(batch["labels"]):
                    moments[label].add(pools[batch["labels"].numpy() == label])
                bar.update(len(pools))
        small = [label for label, each in enumerate(moments) if each.count < 2]
        if small:
            raise UserError(f"Classes {small[:10]} have fewer than two real images: intra-FID is not defined for them.")
        arrays = {
            "counts": np.array([each.count for each in moments]),
            "means": np.stack([each.mean for each in moments]),
            "covariances": np.stack([each.covariance for each in moments]),
        }
        _write_cache(cache, "classes", key, arrays)
    return [scores.Moments.of(*each) for each in zip(arrays["counts"], arrays["means"], arrays["covariances"], strict=True)]


def mixed(source: data.Source, count: int, batch_size: int) -> Iterator[dict[str, tf.Tensor]]:
    """Yields batches of `count` examples, none twice, in a fixed order that mixes them.

    Some metrics look at the first images alone, or at a tenth of them: sources often sort by class.
    """
    order = np.random.default_rng(0).permutation(source.num_examples)[:count]
    for start in range(0, count, batch_size):
        yield source.examples(tf.constant(order[start : start + batch_size]))


def collect(outputs: Iterable[tuple[tf.Tensor, ...]], total: int, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Gathers a classifier's outputs with a progress bar: logits `[N, K]` and features `[N, D]`, float32.

    Raises:
      UserError: if a value is not finite.
    """
    parts = []
    with tqdm(total=total, desc=title, unit="image", disable=None, leave=False) as bar:
        for logits, pool in outputs:
            parts.append((logits.numpy(), pool.numpy()))
            bar.update(len(pool))
    all_logits, pools = (np.concatenate(each) for each in zip(*parts, strict=True))
    if not (np.isfinite(all_logits).all() and np.isfinite(pools).all()):
        raise UserError(f"The classifier gives values that are not finite for the {title}: the images hold NaN, or it is broken.")
    return all_logits, pools


def _path(cache: str, kind: str, key: Key) -> str:
    return files.join(cache, f"{kind}-{fingerprint(key)}.npz")


def _read_cache(cache: str, kind: str, key: Key) -> dict[str, Any] | None:
    """Returns the arrays of a cache file; None if it is missing or, with a warning, cannot be used."""
    path = _path(cache, kind, key)
    try:
        if not cache or not files.exists(path):
            return None
        with files.reading(path) as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if json.loads(str(arrays.pop("key"))) != key:
            raise ValueError("it was made from something else")
        return arrays
    except Exception as error:  # A damaged archive raises whatever its damage leads to.
        logging.warning("The cached statistics %s cannot be used (%s): they are computed again.", path, error)
        return None


def _write_cache(cache: str, kind: str, key: Key, arrays: dict[str, Any]) -> None:
    if not cache:
        return
    path = _path(cache, kind, key)
    with (
        files.told(f"The statistics cannot be kept in {path}, see --stats_cache"),
        files.whole(path) as temporary,
        open(temporary, "wb") as file,
    ):
        np.savez(file, key=json.dumps(key), **arrays)
