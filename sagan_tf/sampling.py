"""Drawing samples: z as a function of (seed, number), and the generator run over any number of them."""

import math

import keras
import numpy as np
import tensorflow as tf

GRID_CLASSES = 10
GRID_COLUMNS = 8


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


def generate(generator: keras.Model, z, labels, batch_size: int = 64) -> np.ndarray:
    """Runs a generator over any number of inputs in batches; returns images `[N, H, W, 3]` in [-1, 1]."""
    z, labels = tf.convert_to_tensor(z, tf.float32), tf.convert_to_tensor(labels, tf.int32)
    call = tf.function(lambda z, labels: generator([z, labels], training=False), reduce_retracing=True)
    parts = [call(z[i : i + batch_size], labels[i : i + batch_size]).numpy() for i in range(0, len(z), batch_size)]
    return np.concatenate(parts)
