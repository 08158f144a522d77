"""Measuring: generated images against real ones, by a classifier, under a protocol that is put on record."""

import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf import data, files, sampling
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers, scores, statistics
from sagan_tf.metrics.classifiers import Classifier
from sagan_tf.metrics.images import Images
from sagan_tf.metrics.record import Record, fingerprint
from sagan_tf.sampling import Sampler

__all__ = ["KNOWN_REAL_SCORES", "Evaluator", "Protocol", "compare"]

# Inception Scores of real images that others have published: (dataset, image size): (least, largest, source).
KNOWN_REAL_SCORES = {("tfds:cifar10", 32): (10.9, 11.6, "Salimans et al., arXiv 1606.03498: 11.24 +- 0.12")}

_Outputs = Iterator[tuple[tf.Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How to measure. How samples are drawn is the sampler's business.

    Attributes:
      num_samples: generated images; the paper takes 50,000.
      batch_size: images at a time, of each replica.
      intra_fid_samples: generated images per class for intra-FID; 0: leave it out.
      manifold: also compute KID, precision, recall, density and coverage.
      real_images: real images to measure against, at most.
    """

    num_samples: int = 50_000
    batch_size: int = 64
    intra_fid_samples: int = 0
    manifold: bool = True
    real_images: int = 50_000


def compare(
    a: "Images | str | os.PathLike[str] | np.ndarray",
    b: "Images | str | os.PathLike[str] | np.ndarray",
    classifier: str | Classifier = "inception",
    *,
    num_samples: int | None = None,
    protocol: Protocol = Protocol(),
    cache: str = "",
) -> Record:
    """Measures images against other images.

    Each side is a folder of image files, an `.npz` file with an array `images`, or an array, uint8 `[N, S, S, 3]`.

    ```python
    record = sagan_tf.metrics.compare("generated/", "real/", classifier="inception")
    print(record.values["fid"])
    ```

    Args:
      a: the images to measure.
      b: the real images.
      classifier: by name, as `--classifier` takes it, or loaded.
      num_samples: images of `a` to take; None: all.
      protocol: all else about the measurement.
      cache: directory of cached statistics of `b`; empty: none.

    Raises:
      UserError: if one side cannot be read or has too few images, or if their sizes differ.
    """
    generated, real = (images if isinstance(images, Images) else Images(images) for images in (a, b))
    if generated.size != real.size:
        raise UserError(
            f"The images of {generated.name} are {generated.size} pixels high, those of {real.name} {real.size}: "
            "make them alike before they are compared."
        )
    if isinstance(classifier, str):
        classifier = classifiers.load(classifier)
    count = generated.source.num_examples if num_samples is None else num_samples
    protocol = dataclasses.replace(protocol, num_samples=count)
    return Evaluator(real.source, classifier, protocol, cache, dataset=real.name).measure(generated)


class Evaluator:
    """Measures generated images against one set of real ones, as often as you like.

    ```python
    evaluator = Evaluator(source, classifiers.load("faces"), Protocol(num_samples=5000))
    record = evaluator.measure(sampling.sampler(generator, config))
    ```

    Args:
      source: the real images.
      classifier: that sees both; with a strategy, made in its scope.
      protocol: how to measure.
      cache: directory of cached statistics of the real images; empty: none.
      strategy: whose replicas share the work; None: the current one.
      dataset: what a record calls the real images.
    """

    def __init__(
        self,
        source: data.Source,
        classifier: Classifier,
        protocol: Protocol = Protocol(),
        cache: str = "",
        strategy: tf.distribute.Strategy | None = None,
        dataset: str = "",
    ):
        self.source = source
        self.classifier = classifier
        self.protocol = protocol
        self.cache = cache
        self.strategy = strategy or tf.distribute.get_strategy()
        self.dataset = dataset

    def measure(self, generated: Sampler | Images, progress: str = "") -> Record:
        """Measures a generator, or images.

        Args:
          generated: a sampler, with a strategy made in its scope; or images, whose intra-FID is left out.
          progress: JSON file that keeps the classes that intra-FID has done; empty: none.

        Raises:
          UserError: if a result is not finite, images are missing, or real ones cannot be read.
        """
        count, real_count = self.protocol.num_samples, self._key["images"]
        if isinstance(generated, Images) and generated.source.num_examples < count:
            there = generated.source.num_examples
            raise UserError(f"{generated.name} holds {there} images, fewer than the {count} asked for: see --num_samples.")
        if min(count, real_count) < 2:
            raise UserError(f"{count} generated and {real_count} real images are too few: each side needs at least two.")
        try:
            values = self._values(generated)
            if self.protocol.intra_fid_samples and isinstance(generated, Sampler):
                values |= self.intra_fid(generated, progress)
        except tf.errors.OpError as error:
            raise data.user_error(error) or error from error
        if broken := [name for name, value in values.items() if not np.isfinite(value)]:
            raise UserError(f"{', '.join(broken)} is not finite: the samples or the classifier are broken.")
        return Record(values, self.protocol_of(generated), tuple(self._warnings(generated.num_classes)), generated.step)

    def protocol_of(self, generated: Sampler | Images | Mapping[str, Any]) -> dict[str, Any]:
        """Returns all that a result depends on beside the weights, exactly as its record holds it.

        Args:
          generated: what is measured; or its facts alone, before it is there.
        """
        facts = generated if isinstance(generated, Mapping) else generated.facts
        versions = {name: importlib.metadata.version(name) for name in ("sagan_tf", "tensorflow", "keras", "tensorflow-gan")}
        settings = dataclasses.asdict(self.protocol) | self.classifier.protocol() | {"inception_score_splits": 1}
        settings |= {"dataset": self.dataset, "real_statistics": fingerprint(self._key), "real_images": self._key["images"]}
        settings |= {"versions": versions}
        if self.protocol.manifold:
            settings |= {"manifold_images": statistics.KEPT_ACTIVATIONS, "manifold_neighbours": scores.NEIGHBOURS}
        # Images that are there already were not drawn class by class.
        settings |= {"intra_fid_samples": 0} if isinstance(generated, Images) else {"classes": "in turn"}
        return settings | dict(facts)

    def intra_fid(self, sampler: Sampler, progress: str = "") -> dict[str, float]:
        """Returns intra-FID: the FID within each class, averaged over classes; the paper's 83.7 is of this kind.

        Classes done are kept in the file `progress`, real moments in the cache, so that an interrupted call goes on.

        Args:
          sampler: of a conditional generator.
          progress: JSON file of the classes done; empty: none.

        Raises:
          UserError: if there are no classes, or a class has fewer than two images.
        """
        if not self.source.num_classes or not sampler.num_classes:
            raise UserError("Intra-FID needs a conditional model and a dataset with classes.")
        key = self._key | {"images": self.source.num_examples}
        state = {"key": key, "protocol": dataclasses.asdict(self.protocol) | dict(sampler.facts), "fid": {}}
        try:
            saved = files.read_json(progress) if progress and files.exists(progress) else {}
            if all(saved.get(name) == state[name] for name in ("key", "protocol")):
                state["fid"] = {name: float(value) for name, value in saved["fid"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logging.warning("%s cannot be read (%s): all classes are measured anew.", progress, error)
        real = statistics.class_moments(self.source, self.classifier, key, self.cache)
        count, distances = self.protocol.intra_fid_samples, state["fid"]
        compiled = tf.function(sampler.draw, reduce_retracing=True)  # One graph for all classes.
        sampler = dataclasses.replace(sampler, draw=compiled)
        for label in range(self.source.num_classes):
            if str(label) in distances:
                continue
            _, pools = statistics.collect(self._drawn(sampler, count, label * count, label), count, f"class {label}")
            distances[str(label)] = real[label].distance(scores.Moments(pools.shape[1]).add(pools))
            try:
                if progress:
                    files.write_json(progress, state)
            except OSError as error:
                logging.log_first_n(
                    logging.WARNING, "%s cannot be written (%s): if interrupted, this begins anew.", 1, progress, error
                )
        return {"intra_fid": float(np.mean(list(distances.values()))), "intra_fid_worst_class": float(max(distances.values()))}

    def _values(self, generated: Sampler | Images) -> dict[str, float]:
        """Returns everything but intra-FID."""
        real, count = self._real, self.protocol.num_samples
        if isinstance(generated, Images):
            batches = statistics.mixed(generated.source, count, self.protocol.batch_size)
            outputs: _Outputs = (self.classifier.run(batch["images"]) for batch in batches)
        else:
            outputs = self._drawn(generated, count)
        logits, pools = statistics.collect(outputs, count, "generated images")
        values = {
            "inception_score": scores.inception_score(logits),
            "fid": real.moments.distance(scores.Moments(pools.shape[1]).add(pools)),
            "inception_score_real": real.inception_score,
        }
        if count % 10 == 0:
            values["inception_score_10_splits"] = scores.inception_score(logits, splits=10)
        names = self.source.class_names
        if isinstance(generated, Sampler) and names and names == self.classifier.class_names[: generated.num_classes]:
            values |= scores.class_accuracy(logits, np.arange(count) % generated.num_classes)
        if self.protocol.manifold and self._has_neighbours:
            kept = pools[: statistics.KEPT_ACTIVATIONS]
            values["kid"] = scores.kernel_distance(real.activations, kept)
            values |= scores.manifold_metrics(real.activations, kept)
        return values

    def _drawn(self, sampler: Sampler, count: int, first: int = 0, label: int | None = None) -> _Outputs:
        """Draws samples in the order of their numbers, and yields what the classifier says of them.

        Each replica generates and classifies its part of a batch in one compiled function.

        Args:
          sampler: draws them.
          count: of samples.
          first: number of the first.
          label: of all of them; None: classes take turns, so that they are uniform.

        Yields:
          Logits `[B, K]` and features `[B, D]`.
        """

        def run(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            labels = numbers % max(sampler.num_classes, 1) if label is None else tf.fill(tf.shape(numbers), label)
            return self.classifier.run(sampler.draw(numbers, tf.cast(labels, tf.int32)))

        return sampling.in_batches(run, count, self.protocol.batch_size, first, self.strategy)

    @functools.cached_property
    def _real(self) -> statistics.RealStatistics:
        return statistics.real_statistics(self.source, self.classifier, self._key, self.cache)

    @functools.cached_property
    def _key(self) -> statistics.Key:
        return statistics.key_of(self.source, self.classifier, min(self.protocol.real_images, self.source.num_examples))

    @property
    def _has_neighbours(self) -> bool:
        """Whether there are images enough for the metrics of nearest neighbours."""
        return min(self.protocol.num_samples, self._key["images"]) > scores.NEIGHBOURS

    def _warnings(self, num_classes: int) -> list[str]:
        """Returns what a reader of a result must know, a sentence each, of a generator of so many classes."""
        found, real = [], self._real
        least, most = (real.histogram.min(), real.histogram.max()) if num_classes > 1 else (0, 0)
        dimensions = real.activations.shape[1]
        for name, count in (("generated", self.protocol.num_samples), ("real", real.moments.count)):
            if count <= dimensions:
                found.append(f"{count} {name} images are no more than the {dimensions} features: the covariance is singular.")
        if self.protocol.manifold and not self._has_neighbours:
            found.append(f"KID, precision and the like are left out: they need more than {scores.NEIGHBOURS} images on each side.")
        if real.num_logits < self.source.num_classes:
            found.append(
                f"The classifier tells {real.num_logits} classes apart, the dataset has {self.source.num_classes}: "
                "that bounds the score."
            )
        if least * 2 < most:
            found.append(f"The real images are not uniform over classes ({least} to {most}), the generated are.")
        band = KNOWN_REAL_SCORES.get((self.dataset, self._key["image_size"]))
        if band and self.classifier.name == "inception" and not band[0] <= real.inception_score <= band[1]:
            found.append(
                f"The real images score {real.inception_score:.2f}, outside the known band ({band[2]}): check data and resizing."
            )
        return found
