"""The protocol around the metrics: which images, how many, against what, and what was recorded.

`evaluate` measures generated images against a source of real ones and returns one record: the values
and, beside them, everything that they depend on. `append` writes it to `metrics.jsonl`.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from sagan_tf import data
from sagan_tf.config import Config
from sagan_tf.data import images as image_files
from sagan_tf.errors import UserError
from sagan_tf.metrics import scores
from sagan_tf.metrics.classifiers import Classifier
from sagan_tf.runs.checkpoints import write_file
from sagan_tf.sampling import draw_z

# Activations kept for KID, precision and recall; their cost grows with the square of this.
KEPT_ACTIVATIONS = 10_000

# Inception Scores of real images that others have published: (dataset, image size): (least, largest, source).
KNOWN_REAL_SCORES = {("tfds:cifar10", 32): (10.9, 11.6, "Salimans et al., arXiv 1606.03498: 11.24 +- 0.12")}

# Images of these sample numbers and labels: float32 `[B, H, W, 3]` in [-1, 1].
Sampler = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# What a classifier says of a batch: logits `[B, K]` and features `[B, D]`.
Outputs = tuple[tf.Tensor, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a result is measured.

    Attributes:
      num_samples: generated images; the paper takes 50,000.
      batch_size: images at a time.
      seed: of z.
      truncation: largest absolute value of a component of z; 0: none.
      batch_norm: "moving" averages, as the paper, or "batch" statistics of each evaluation batch.
      intra_fid_samples: generated images per class for intra-FID; 0: leave it out.
      manifold: also compute KID, precision, recall, density and coverage.
    """

    num_samples: int = 50_000
    batch_size: int = 64
    seed: int = 0
    truncation: float = 0.0
    batch_norm: str = "moving"
    intra_fid_samples: int = 0
    manifold: bool = True


def generator_sampler(generator: keras.Model, z_dim: int, protocol: Protocol) -> Sampler:
    """Returns the sampler of a Keras generator."""
    training = protocol.batch_norm == "batch"
    if training:  # A copy: batch statistics come with moving averages and u that move.
        trained, generator = generator, keras.models.clone_model(generator)
        generator.set_weights(trained.get_weights())

    @tf.function(reduce_retracing=True)
    def sample(numbers, labels):
        return generator([draw_z(numbers, z_dim, protocol.seed, protocol.truncation), labels], training=training)

    return sample


def saved_model_sampler(path: str, protocol: Protocol) -> tuple[Sampler, int]:
    """Returns the sampler of an exported SavedModel, and its image size.

    Raises:
      UserError: if it is none, or has no such signature.
    """
    try:
        model = tf.saved_model.load(path)
        serve = model.signatures["serving_default"]
        z_dim = serve.structured_input_signature[1]["z"].shape[1]
        size = serve.structured_outputs["images"].shape[1]
    except (OSError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"{path} is not a SavedModel that sagan-export wrote ({str(error).splitlines()[0]}).") from error

    @tf.function(reduce_retracing=True)
    def sample(numbers, labels):
        z = draw_z(numbers, z_dim, protocol.seed, protocol.truncation)
        return serve(z=z, labels=labels)["images"]

    sample.model = model
    return sample, size


def folder_images(path: str, count: int, batch_size: int) -> Iterator[tf.Tensor]:
    """Yields batches of images from a folder of generated files, in an order that mixes its classes.

    Raises:
      UserError: if there are fewer than asked for, one cannot be read, or their sizes differ.
    """
    try:
        paths, _, _ = image_files.list_folder(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if len(paths) < count:
        raise UserError(f"{path} holds {len(paths)} images, fewer than the {count} asked for: see --num_samples.")
    # Some metrics look at the first images alone, or at a tenth of them: file names often sort by class.
    paths = [paths[index] for index in np.random.default_rng(0).permutation(len(paths))[:count]]
    size = None
    for start in range(0, count, batch_size):
        batch = []
        for file in paths[start : start + batch_size]:
            try:
                with image_files.Image.open(file) as image:
                    size = size or image.size
                    if image.size != size or size[0] != size[1]:
                        raise UserError(f"{file} is {image.size[0]}x{image.size[1]}; all images must be square, of one size.")
                batch.append(image_files.preprocess(file, size[0]))
            except image_files.DECODE_ERRORS as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{file} cannot be read as an image ({error}): remove it or make it again.") from error
        yield tf.constant(np.stack(batch), tf.float32) / 127.5 - 1.0


def sampled_outputs(
    sampler: Sampler,
    classifier: Classifier,
    count: int,
    num_classes: int,
    batch_size: int,
    first: int = 0,
    label: int | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[Outputs]:
    """Yields what the classifier says of generated images, in the order of their numbers.

    Each replica generates and classifies its part of a batch in one compiled function.

    Args:
      sampler: draws images by number and label.
      classifier: that sees them; with a strategy, made in its scope, as the sampler's generator.
      count: images.
      num_classes: classes take turns, so that they are uniform; 0: all labels are 0.
      batch_size: images of a replica at a time.
      first: number of the first image.
      label: give every image this label instead.
      strategy: whose replicas share the work; None: the current one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    whole = batch_size * strategy.num_replicas_in_sync

    @tf.function
    def run(numbers, labels):
        def on_replica():
            start = tf.distribute.get_replica_context().replica_id_in_sync_group * batch_size
            return classifier.run(sampler(numbers[start : start + batch_size], labels[start : start + batch_size]))

        return [strategy.gather(output, axis=0) for output in strategy.run(on_replica)]

    for start in range(first, first + count, whole):
        # Always a whole batch, so that there is one graph; what is too many is cut off.
        numbers = tf.range(start, start + whole, dtype=tf.int64)
        labels = tf.cast(numbers % max(num_classes, 1), tf.int32) if label is None else tf.fill([whole], label)
        wanted = min(whole, first + count - start)
        logits, pool = run(numbers, labels)
        yield logits[:wanted], pool[:wanted]


def collect(outputs: Iterator[Outputs], total: int, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Gathers a classifier's outputs with a progress bar: logits `[N, K]` and features `[N, D]`, float32.

    Raises:
      UserError: if a value is not finite.
    """
    logits, pools = [], []
    with tqdm(total=total, desc=title, unit="image", disable=None, leave=False) as bar:
        for logits_part, pool in outputs:
            logits.append(logits_part.numpy())
            pools.append(pool.numpy())
            bar.update(len(pools[-1]))
    logits, pools = np.concatenate(logits), np.concatenate(pools)
    if not (np.isfinite(logits).all() and np.isfinite(pools).all()):
        raise UserError(f"The classifier gives values that are not finite for the {title}: the images hold NaN, or it is broken.")
    return logits, pools


@dataclasses.dataclass(frozen=True)
class RealStatistics:
    """What is kept of the real images.

    Attributes:
      key: what they were computed from.
      moments: of the features of all of them.
      inception_score: of the real images themselves.
      histogram: images per class.
      activations: features of the first `KEPT_ACTIVATIONS`.
      num_logits: classes that the classifier tells apart.
    """

    key: dict
    moments: scores.Moments
    inception_score: float
    histogram: np.ndarray
    activations: np.ndarray
    num_logits: int


def _key(source: data.Source, config: Config, classifier: Classifier, count: int) -> dict:
    """Identifies real statistics by content, so that they serve on another machine with other paths."""
    probe = np.unique(np.linspace(0, source.num_examples - 1, 32).astype(np.int64))
    examples = source.examples(tf.constant(probe))
    digest = hashlib.sha256(np.rint((examples["images"].numpy() + 1) * 127.5).astype(np.uint8).tobytes())
    digest.update(examples["labels"].numpy().astype(np.int64).tobytes())
    return {
        "images": count,
        "of": source.num_examples,
        "image_size": config.image_size,
        "content": digest.hexdigest()[:16],
        **classifier.protocol(),
    }


def fingerprint(value: dict) -> str:
    """Returns a name for these settings: equal ones have equal names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _cache_path(cache: str, kind: str, key: dict) -> str:
    return os.path.join(cache, f"{kind}-{fingerprint(key)}.npz")


def _read_cache(path: str, key: dict) -> "dict[str, np.ndarray] | None":
    """Returns the arrays of a cache file; None if it is missing or, with a warning, cannot be used."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if json.loads(str(arrays.pop("key"))) != key:
            raise ValueError("it was made from something else")
        return arrays
    except Exception as error:  # A damaged archive raises whatever its damage leads to.
        logging.warning("The cached statistics %s cannot be used (%s): they are computed again.", path, error)
        return None


def _write_cache(path: str, key: dict, **arrays: np.ndarray) -> None:
    temporary = f"{path}.tmp{os.getpid()}.npz"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        np.savez(temporary, key=json.dumps(key), **arrays)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        logging.warning("The statistics cannot be kept in %s (%s): see --stats_cache.", path, error.strerror)


def real_statistics(source: data.Source, config: Config, classifier: Classifier, cache: str, count: int = 50_000) -> RealStatistics:
    """Returns the statistics of the first `count` real images, from the cache if they are there.

    Args:
      source: the real images.
      config: of the run; its image size counts.
      classifier: that sees them.
      cache: directory of cached statistics.
      count: images to take at most; all if there are fewer.
    """
    count = min(count, source.num_examples)
    key = _key(source, config, classifier, count)
    path = _cache_path(cache, "real", key)
    arrays = _read_cache(path, key)
    if arrays is None:
        order = np.random.default_rng(0).permutation(source.num_examples)[:count]
        labels = []

        def batches():
            for start in range(0, count, 64):
                examples = source.examples(tf.constant(order[start : start + 64]))
                labels.append(examples["labels"].numpy())
                yield classifier.run(examples["images"])

        logits, pools = collect(batches(), count, "real images")
        moments = scores.Moments(pools.shape[1]).add(pools)
        labels = np.concatenate(labels)  # Without classes, they may be anything: -1 where a test split has none.
        arrays = {
            "count": np.int64(count),
            "mean": moments.mean,
            "covariance": moments.covariance,
            "inception_score": np.float64(scores.inception_score(logits)),
            "histogram": np.bincount(labels[labels >= 0], minlength=source.num_classes),
            "activations": pools[:KEPT_ACTIVATIONS],
            "num_logits": np.int64(logits.shape[1]),
        }
        _write_cache(path, key, **arrays)
    return RealStatistics(
        key,
        scores.Moments.of(arrays["count"], arrays["mean"], arrays["covariance"]),
        float(arrays["inception_score"]),
        arrays["histogram"],
        arrays["activations"],
        int(arrays["num_logits"]),
    )


def _has_neighbours(real: RealStatistics, protocol: Protocol) -> bool:
    """Returns whether there are images enough for the metrics of nearest neighbours."""
    return min(protocol.num_samples, real.moments.count) > scores.NEIGHBOURS


def warnings_of(real: RealStatistics, source: data.Source, config: Config, classifier: Classifier, protocol: Protocol) -> list[str]:
    """Returns what a reader of the result must know, a sentence each."""
    found = []
    dimensions = real.activations.shape[1]
    for name, count in (("generated", protocol.num_samples), ("real", real.moments.count)):
        if count <= dimensions:
            found.append(f"{count} {name} images are no more than the {dimensions} features: the covariance is singular.")
    if protocol.manifold and not _has_neighbours(real, protocol):
        found.append(f"KID, precision and the like are left out: they need more than {scores.NEIGHBOURS} images on each side.")
    if real.num_logits < source.num_classes:
        found.append(
            f"The classifier tells {real.num_logits} classes apart, the dataset has {source.num_classes}: that bounds the score."
        )
    if config.num_classes > 1 and real.histogram.min() * 2 < real.histogram.max():
        found.append(
            f"The real images are not uniform over classes ({real.histogram.min()} to {real.histogram.max()}), the generated are."
        )
    band = KNOWN_REAL_SCORES.get((config.dataset, config.image_size))
    if band and classifier.name == "inception" and not band[0] <= real.inception_score <= band[1]:
        found.append(
            f"The real images score {real.inception_score:.2f}, outside the known band ({band[2]}): check data and resizing."
        )
    return found


def evaluate(
    generated: Iterator[Outputs],
    source: data.Source,
    config: Config,
    classifier: Classifier,
    protocol: Protocol,
    cache: str,
    real_images: int = 50_000,
) -> dict:
    """Measures generated images against real ones.

    Args:
      generated: what the classifier says of the `protocol.num_samples` generated images.
      source: the real images.
      config: of the run.
      classifier: that sees both.
      protocol: how to measure.
      cache: directory of cached statistics.
      real_images: how many real images to take at most.

    Returns:
      `{"values": {name: number}, "protocol": {...}, "warnings": [...]}`.

    Raises:
      UserError: if a result is not finite, or images are missing.
    """
    real = real_statistics(source, config, classifier, cache, real_images)
    logits, pools = collect(generated, protocol.num_samples, "generated images")
    if len(pools) != protocol.num_samples:
        raise UserError(f"Only {len(pools)} of {protocol.num_samples} samples were generated.")
    values = {
        "inception_score": scores.inception_score(logits),
        "fid": real.moments.distance(scores.Moments(pools.shape[1]).add(pools)),
        "inception_score_real": real.inception_score,
    }
    if len(logits) % 10 == 0:
        values["inception_score_10_splits"] = scores.inception_score(logits, splits=10)
    if protocol.manifold and _has_neighbours(real, protocol):
        kept = pools[:KEPT_ACTIVATIONS]
        values["kid"] = scores.kernel_distance(real.activations, kept)
        values |= scores.manifold_metrics(real.activations, kept)
    return finish(values, real, source, config, classifier, protocol)


def finish(values: dict, real: RealStatistics, source, config: Config, classifier: Classifier, protocol: Protocol) -> dict:
    """Returns a record of these values with all that they depend on.

    Raises:
      UserError: if one is not finite.
    """
    if broken := [name for name, value in values.items() if not np.isfinite(value)]:
        raise UserError(f"{', '.join(broken)} is not finite: the samples or the classifier are broken.")
    found = warnings_of(real, source, config, classifier, protocol)
    return {"values": values, "protocol": whole_protocol(real, config, classifier, protocol), "warnings": found}


def whole_protocol(real: RealStatistics, config: Config, classifier: Classifier, protocol: Protocol) -> dict[str, Any]:
    """Returns all that a result depends on beside the generator, as it is recorded."""
    versions = {name: importlib.metadata.version(name) for name in ("sagan_tf", "tensorflow", "keras", "tensorflow-gan")}
    settings = dataclasses.asdict(protocol) | classifier.protocol() | {"classes": "in turn", "inception_score_splits": 1}
    settings |= {"dataset": config.dataset, "real_statistics": fingerprint(real.key), "real_images": real.moments.count}
    settings |= {"versions": versions}
    if protocol.manifold:
        settings |= {"manifold_images": KEPT_ACTIVATIONS, "manifold_neighbours": scores.NEIGHBOURS}
    return settings


def intra_fid(
    sampler: Sampler,
    source: data.Source,
    config: Config,
    classifier: Classifier,
    protocol: Protocol,
    cache: str,
    progress: str,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, float]:
    """Returns intra-FID: the FID within each class, averaged over classes; the paper's 83.7 is of this kind.

    Classes done are kept in the file `progress`, real moments in the cache, so that an interrupted call goes on.

    Args:
      sampler: draws images by number and label.
      source: the real images, with labels.
      config: of the run.
      classifier: that sees both.
      protocol: `intra_fid_samples`, seed and so on.
      cache: directory of cached statistics.
      progress: JSON file of the classes done.
      strategy: whose replicas share the work; None: the current one.

    Raises:
      UserError: if the dataset has no classes, or a class fewer than two images.
    """
    if not source.num_classes or not config.num_classes:
        raise UserError("Intra-FID needs a conditional model and a dataset with classes.")
    key = _key(source, config, classifier, source.num_examples)
    state = {"key": key, "protocol": dataclasses.asdict(protocol), "fid": {}}
    if os.path.exists(progress):
        with open(progress, encoding="utf-8") as file:
            saved = json.load(file)
        if (saved["key"], saved["protocol"]) == (state["key"], state["protocol"]):
            state = saved
    real = _class_moments(source, classifier, key, cache)
    for label in range(source.num_classes):
        if str(label) in state["fid"]:
            continue
        count = protocol.intra_fid_samples
        outputs = sampled_outputs(
            sampler, classifier, count, 0, protocol.batch_size, first=label * count, label=label, strategy=strategy
        )
        _, pools = collect(outputs, count, f"class {label}")
        state["fid"][str(label)] = real[label].distance(scores.Moments(pools.shape[1]).add(pools))
        try:
            write_file(progress, json.dumps(state) + "\n")
        except OSError as error:
            logging.log_first_n(logging.WARNING, "%s cannot be written (%s): an interrupted call begins anew.", 1, progress, error)
    distances = list(state["fid"].values())
    return {"intra_fid": float(np.mean(distances)), "intra_fid_worst_class": float(np.max(distances))}


def _class_moments(source: data.Source, classifier: Classifier, key: dict, cache: str) -> list[scores.Moments]:
    """Returns the moments of each class of the real images, cached."""
    path = _cache_path(cache, "classes", key)
    arrays = _read_cache(path, key)
    if arrays is None:
        moments: list[scores.Moments] | None = None
        with tqdm(total=source.num_examples, desc="real classes", unit="image", disable=None, leave=False) as bar:
            for batch in data.eval_dataset(source, 64):
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
        _write_cache(path, key, **arrays)
    return [scores.Moments.of(*each) for each in zip(arrays["counts"], arrays["means"], arrays["covariances"], strict=True)]


def table(record: dict) -> str:
    """Returns a record as text: the values, the protocol in a line, and the warnings."""
    p = record["protocol"]
    lines = [f"  {name:28} {value:12.5g}" for name, value in record["values"].items()]
    lines.append(
        f"  ({p['num_samples']} samples against {p['real_images']} images of {p['dataset']}; classifier {p['classifier']}, "
        f"{p['resize']}; {p['batch_norm']} batch norm; truncation {p['truncation'] or 'none'}; seed {p['seed']})"
    )
    return "\n".join(lines + [f"  note: {warning}" for warning in record["warnings"]])
