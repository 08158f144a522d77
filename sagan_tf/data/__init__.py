"""Training images, from generated ones to ImageNet records, as the same batches.

A source gives examples by index, and the order of training is a function of (seed, batch number):
a resumed run needs neither a replay from the start nor a shuffle buffer in its checkpoint, and no
image comes twice in an epoch.
"""

from collections.abc import Iterator
from typing import Protocol

import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.data.faces import FacesSource
from sagan_tf.data.folder import FolderSource
from sagan_tf.data.loader import recover as user_error
from sagan_tf.data.tfds import TFDSSource
from sagan_tf.data.tfrecord import TFRecordSource
from sagan_tf.errors import UserError

__all__ = ["Source", "eval_dataset", "num_classes", "open_source", "some_examples", "train_dataset", "train_iterator"]
__all__ += ["user_error"]

# Of the cipher behind the shuffle. With the usual 4, examples near each other in the order are related: batches of a small set
# that is sorted by class hold the classes less evenly than chance would.
_ROUNDS = 8


class Source(Protocol):
    """A set of labelled images that can be read by index, in TensorFlow graphs too.

    Attributes:
      num_examples: how many there are.
      num_classes: how many classes are known; 0: the images have no labels.
      class_names: their names, if they have names.
    """

    num_examples: int
    num_classes: int
    class_names: tuple[str, ...]

    def examples(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reads examples.

        Args:
          indices: int64 `[B]`.

        Returns:
          `images` float32 `[B, H, W, 3]` in [-1, 1] and `labels` int32 `[B]`.
        """


def open_source(config: Config) -> Source:
    """Returns the source that `config.dataset` names, after checking what can be checked cheaply.

    Raises:
      UserError: if it does not exist, cannot be read, or does not fit the configuration.
    """
    kind, _, rest = config.dataset.partition(":")
    source: Source
    if config.dataset == "faces":
        source = FacesSource(config.image_size, config.num_classes, config.seed)
    elif kind == "folder" and rest:
        source = FolderSource(rest, config.image_size, config.skip_corrupt_records)
    elif kind == "tfrecord" and rest:
        source = TFRecordSource(rest, config.image_size, config.num_classes, config.skip_corrupt_records)
    elif kind == "tfds" and rest:
        source = TFDSSource(rest, config)
    elif config.dataset == "twins":
        raise UserError("The dataset twins was removed in 0.2: train on --dataset=faces, into a new --model_dir.")
    else:
        raise UserError(f"--dataset={config.dataset} is none of faces, folder:PATH, tfrecord:GLOB and tfds:NAME.")
    num_classes(source, config)  # Refuses what does not fit.
    return source


def num_classes(source: Source, config: Config) -> int:
    """Returns the number of classes to condition on: `config.num_classes`, or the source's if that is -1.

    Raises:
      UserError: if the source has more classes than the configuration, or has no labels.
    """
    if config.num_classes < 0:
        return source.num_classes
    if config.num_classes > 1 and not source.num_classes:
        raise UserError(
            f"--num_classes={config.num_classes}, but --dataset={config.dataset} has no labels: pass 0 to train without "
            "classes, or sort the images into a folder for each class."
        )
    if 0 < config.num_classes < source.num_classes:
        raise UserError(
            f"--num_classes={config.num_classes}, but --dataset={config.dataset} has {source.num_classes} classes: "
            f"pass {source.num_classes}, or 0 to train without classes."
        )
    return config.num_classes


def _order(numbers: tf.Tensor, num_examples: int, seed: int) -> tf.Tensor:
    """Returns the example that has each place in the endless training order: a new permutation every epoch."""
    epoch, place = numbers // num_examples, numbers % num_examples
    # The op behind tf.random.experimental.index_shuffle, which takes a seed for each index: (seed, epoch).
    seeds = tf.stack([tf.zeros_like(epoch), tf.zeros_like(epoch) + seed, epoch], axis=1)
    return tf.raw_ops.RandomIndexShuffle(index=place, seed=seeds, max_index=tf.cast(num_examples - 1, tf.int64), rounds=_ROUNDS)


def train_dataset(
    source: Source,
    config: Config,
    start_batch: int = 0,
    batch_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    data_seed: int | None = None,
) -> tf.data.Dataset:
    """Returns the endless training batches from number `start_batch` on.

    Args:
      source: where the examples come from.
      config: `batch_size`, `horizontal_flip`, `num_classes`, `image_size`, `seed`.
      start_batch: number of the first batch.
      batch_size: B, of the whole batch; None: `config.batch_size`.
      shard: `(k, n)`: give the k-th of n equal, contiguous parts of each batch.
      data_seed: seed of order and flips; None: `config.seed`.

    Returns:
      A dataset of `images` float32 `[B / n, H, W, 3]` in [-1, 1] and `labels` int32 `[B / n]`.

    Raises:
      UserError: if the batch does not divide into n parts.
    """
    batch_size = batch_size or config.batch_size
    seed = config.seed if data_seed is None else data_seed
    if batch_size % shard[1]:
        raise UserError(f"--batch_size={batch_size} does not divide among {shard[1]} workers: choose a multiple of {shard[1]}.")
    part = batch_size // shard[1]
    first = shard[0] * part

    def batch(number: tf.Tensor) -> dict[str, tf.Tensor]:
        numbers = number * batch_size + first + tf.range(part, dtype=tf.int64)
        examples = source.examples(_order(numbers, source.num_examples, seed))
        images = tf.ensure_shape(examples["images"], [part, config.image_size, config.image_size, 3])
        if config.horizontal_flip:
            # Drawn for the whole batch, whichever part of it is wanted.
            draws = tf.random.stateless_uniform([batch_size], tf.stack([tf.constant(-1 - seed, tf.int64), number]))
            flip = draws[first : first + part] < 0.5
            # The first W or 1 columns reversed: in one pass, unlike a selection between two batches.
            images = tf.reverse_sequence(images, tf.where(flip, config.image_size, 1), seq_axis=2)
        labels = examples["labels"] if config.num_classes else tf.zeros_like(examples["labels"])
        return {"images": images, "labels": tf.ensure_shape(labels, [part])}

    numbers = tf.data.Dataset.range(start_batch, tf.int64.max)
    return numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def train_iterator(
    source: Source, config: Config, strategy: tf.distribute.Strategy, step: int = 0, rollbacks: int = 0
) -> Iterator[dict[str, tf.Tensor]]:
    """Returns the endless iterator over a training's batches, each divided among the replicas of a strategy.

    Args:
      source: where the examples come from.
      config: as for `train_dataset`.
      strategy: whose replicas train.
      step: steps done, after which it begins.
      rollbacks: of the training so far; each makes it go on with other data.
    """
    per_replica = config.batch_size // strategy.num_replicas_in_sync

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        batches = train_dataset(source, config, step * config.d_step, shard=shard, data_seed=config.seed + rollbacks)
        return batches.rebatch(per_replica)

    return iter(strategy.distribute_datasets_from_function(dataset))


def some_examples(source: Source, config: Config, count: int) -> dict[str, tf.Tensor]:
    """Returns the first examples of the training order, each once: a random choice of at most `count`.

    Raises:
      UserError: if they cannot be read.
    """
    indices = _order(tf.range(min(count, source.num_examples), dtype=tf.int64), source.num_examples, config.seed)
    parts = [source.examples(indices[start : start + 64]) for start in range(0, len(indices), 64)]
    images, labels = (tf.concat([part[name] for part in parts], 0) for name in ("images", "labels"))
    return {"images": images, "labels": labels if config.num_classes else tf.zeros_like(labels)}


def eval_dataset(source: Source, batch_size: int) -> tf.data.Dataset:
    """Returns each example once, in order, in batches; the last may be smaller."""
    indices = tf.data.Dataset.range(source.num_examples).batch(batch_size)
    return indices.map(source.examples, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
