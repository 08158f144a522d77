"""Drawing samples: z as a function of (seed, number), and the one loop that runs a generator over any number of them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sagan_tf import pixels
from sagan_tf.config import Config
from sagan_tf.errors import UserError

__all__ = [
    "GRID_CLASSES",
    "GRID_COLUMNS",
    "Choice",
    "Draws",
    "Sampler",
    "draw_z",
    "generate",
    "grid_inputs",
    "in_batches",
    "inputs",
    "map_rows",
    "parse_classes",
    "sampler",
    "stream",
]

# A run's sample grids: a class per row.
GRID_CLASSES = 10
GRID_COLUMNS = 8
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Draws:
    """How samples are drawn from a generator.

    Attributes:
      seed: of z.
      truncation: largest absolute value of a component of z; 0: none.
      batch_norm: "moving" averages, as the paper, or "batch" statistics of each batch.
    """

    seed: int = 0
    truncation: float = 0.0
    batch_norm: str = "moving"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which samples of a run to show; the names are those of the flags.

    Attributes:
      classes: numbers as texts; none: the first ten.
      samples_per_class: images of each class; 0: as many as suit what is shown.
      sample_seed: of z.
      truncation: largest absolute value of a component of z; 0: none.
      checkpoint_step: of the checkpoint to read; None: the newest.
      use_ema: take the averaged generator; None: if the run has one.
    """

    classes: Sequence[str] = ()
    samples_per_class: int = 0
    sample_seed: int = 0
    truncation: float = 0.0
    checkpoint_step: int | None = None
    use_ema: bool | None = None

    @property
    def draws(self) -> Draws:
        """How z is drawn."""
        return Draws(self.sample_seed, self.truncation)

    def per_class(self, total: int, classes: int) -> int:
        """Returns how many images of each of so many classes to show: those asked for, or about `total` in all."""
        return self.samples_per_class or max(total // classes, 1)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws images by number: an image is a function of the weights, its label, and (seed, number).

    Attributes:
      draw: int64 numbers `[B]` and int32 labels `[B]` to float32 images `[B, H, W, 3]` in [-1, 1].
      num_classes: classes that it knows; 0: none, and every label is 0.
      facts: what a record says of it.
      step: of the checkpoint behind it; None: it is none.
    """

    draw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    num_classes: int
    facts: Mapping[str, Any]
    step: int | None = None


def sampler(generator: keras.Model, config: Config, draws: Draws = Draws(), step: int | None = None, **facts: Any) -> Sampler:
    """Returns the sampler of a Keras generator.

    Args:
      generator: of a run; with a strategy, made in its scope.
      config: of the run.
      draws: how z is drawn, and what batch norm uses.
      step: of the checkpoint.
      **facts: more that a record shall say, such as `use_ema`.
    """
    training = draws.batch_norm == "batch"
    if training:  # A copy: batch statistics come with moving averages and u that move.
        trained, generator = generator, keras.models.clone_model(generator)
        generator.set_weights(trained.get_weights())

    def draw(numbers: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return generator([draw_z(numbers, config.z_dim, draws.seed, draws.truncation), labels], training=training)

    return Sampler(draw, config.num_classes, dataclasses.asdict(draws) | facts, step)


def in_batches(
    function: Callable[[tf.Tensor], Sequence[tf.Tensor]],
    count: int,
    batch_size: int = _BATCH,
    first: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Runs a function of sample numbers on every replica, and yields what it returns in the order of the numbers.

    Args:
      function: int64 numbers `[B]` to tensors of B rows; compiled, and always given whole batches.
      count: numbers in all.
      batch_size: numbers of a replica at a time, B.
      first: the first number.
      strategy: whose replicas share the work; None: the current one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    whole = batch_size * strategy.num_replicas_in_sync

    @tf.function
    def run(start: tf.Tensor) -> list[tf.Tensor]:
        def on_replica() -> list[tf.Tensor]:
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
            return list(function(start + replica * batch_size + tf.range(batch_size, dtype=tf.int64)))

        return [strategy.gather(output, axis=0) for output in strategy.run(on_replica)]

    for start in range(first, first + count, whole):
        # Always a whole batch, so that there is one graph; what is too many is cut off.
        yield tuple(output[: first + count - start] for output in run(tf.constant(start, tf.int64)))


def map_rows(
    function: Callable[..., Sequence[tf.Tensor]], *rows: tf.Tensor, batch_size: int = _BATCH
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Runs a function over tensors of N rows each, batch by batch, as `in_batches`.

    Args:
      function: tensors of B rows each to tensors of B rows.
      *rows: the tensors.
      batch_size: rows at a time, B.
    """
    count = len(rows[0])

    def of_numbers(numbers: tf.Tensor) -> Sequence[tf.Tensor]:
        return function(*(tf.gather(each, numbers % count) for each in rows))

    return in_batches(of_numbers, count, min(batch_size, count))


def generate(generator: keras.Model, z: Any, labels: Any) -> np.ndarray:
    """Runs a generator over any number of inputs.

    Args:
      generator: takes z and labels.
      z: `[N, z_dim]`.
      labels: `[N]`.

    Returns:
      float32 images `[N, H, W, 3]` in [-1, 1].
    """
    z, labels = tf.convert_to_tensor(z, tf.float32), tf.convert_to_tensor(labels, tf.int32)
    batches = map_rows(lambda z, labels: (generator([z, labels], training=False),), z, labels)
    return np.concatenate([images.numpy() for (images,) in batches])


def stream(
    source: Sampler, classes: Sequence[int], count: int, strategy: tf.distribute.Strategy | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields any number of samples in batches, the classes in turn.

    Args:
      source: draws them.
      classes: that take turns.
      count: samples in all.
      strategy: whose replicas share the work; None: the current one.

    Yields:
      uint8 images `[B, H, W, 3]` and int32 labels `[B]`.
    """

    def draw(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels = tf.gather(tf.constant(classes, tf.int32), numbers % len(classes))
        return source.draw(numbers, labels), labels

    # Gathered as floats: between replicas, TensorFlow gathers no uint8.
    for images, labels in in_batches(draw, count, strategy=strategy):
        yield pixels.to_uint8(images), labels.numpy()


def parse_classes(names: Sequence[str], num_classes: int) -> list[int]:
    """Returns the class numbers that `--classes` means.

    Args:
      names: numbers as texts; none: the first ten classes.
      num_classes: that the generator knows; 0: none, which counts as one class.

    Raises:
      UserError: if one is not a number, or out of range.
    """
    known = max(num_classes, 1)
    for name in names:
        if not name.strip().isdigit() or int(name) >= known:
            raise UserError(f"--classes: {name!r} is not a class; they are 0 to {known - 1}.")
    return [int(name) for name in names] or list(range(min(known, GRID_CLASSES)))


def inputs(classes: Sequence[int], per_class: int, z_dim: int, draws: Draws = Draws()) -> tuple[tf.Tensor, np.ndarray]:
    """Returns z `[N, z_dim]` and labels `[N]` of `per_class` samples of each class, class by class."""
    labels = np.repeat(classes, per_class)
    return draw_z(tf.range(len(labels)), z_dim, draws.seed, draws.truncation), labels


def grid_inputs(z_dim: int, num_classes: int, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the fixed z and labels of a run's sample grids: a class per row."""
    rows = min(num_classes or GRID_CLASSES, GRID_CLASSES)
    z = tf.random.stateless_normal([rows * GRID_COLUMNS, z_dim], [seed, -1])
    return z, tf.repeat(tf.range(rows) if num_classes else tf.zeros(rows, tf.int32), GRID_COLUMNS)


def draw_z(numbers: tf.Tensor, z_dim: int, seed: int, truncation: float = 0.0) -> tf.Tensor:
    """Draws the z of these samples: a function of (seed, sample number) alone.

    Args:
      numbers: int64 `[B]`.
      z_dim: dimensions of z.
      seed: of the draws.
      truncation: largest absolute value of a component, the normal distribution being cut off there; 0: none. Draws of
        one number under different bounds have the same quantiles.

    Returns:
      float32 `[B, z_dim]`.
    """
    # The part of the distribution below the cut; what is left of it is stretched over all of the draw's quantiles, so
    # that a tighter bound moves the same sample towards the mean and no bound leaves it as drawn.
    below = 0.5 * (1.0 + math.erf(-truncation / math.sqrt(2.0))) if truncation else 0.0

    def draw(number):
        z = tf.random.stateless_normal([z_dim], tf.stack([tf.constant(seed, tf.int64), number]))
        if not truncation:
            return z
        quantile = 0.5 * tf.math.erfc(-tf.cast(z, tf.float64) / math.sqrt(2.0))
        return tf.cast(tf.math.ndtri(below + (1.0 - 2.0 * below) * quantile), tf.float32)

    return tf.map_fn(draw, tf.cast(numbers, tf.int64), fn_output_signature=tf.float32)
