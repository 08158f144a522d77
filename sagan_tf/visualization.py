"""Images for people: sample grids, and the fixed z behind them."""

import io
import math
import os

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

GRID_CLASSES = 10
GRID_COLUMNS = 8


def to_uint8(images) -> np.ndarray:
    """Turns images in [-1, 1] into 0..255, rounding to the nearest."""
    return np.uint8(np.clip(np.rint((np.asarray(images) + 1.0) * 127.5), 0, 255))


def grid(images, columns: int, padding: int = 2) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: `[N, H, W, 3]` in [-1, 1].
      columns: images per row.
      padding: pixels between images.

    Returns:
      uint8 `[rows * (H + padding) + padding, columns * (W + padding) + padding, 3]`.
    """
    images = to_uint8(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (padding + (index // columns) * (height + padding), padding + (index % columns) * (width + padding))
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_png(path: str, image: np.ndarray) -> None:
    """Writes a uint8 image, making the directory if need be; whole or not at all."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="PNG")
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(encoded.getvalue())
    os.replace(temporary, path)


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
      truncation: largest absolute value of a component, the normal distribution being cut off there; 0: none.

    Returns:
      float32 `[B, z_dim]`.
    """
    # The part of the distribution below the cut; a uniform draw from the rest, put through the quantile function.
    below = 0.5 * (1.0 + math.erf(-truncation / math.sqrt(2.0))) if truncation else 0.0

    def draw(number):
        key = tf.stack([tf.constant(seed, tf.int64), number])
        if not truncation:
            return tf.random.stateless_normal([z_dim], key)
        uniform = tf.random.stateless_uniform([z_dim], key, below, 1.0 - below, tf.float64)
        return tf.cast(tf.math.ndtri(uniform), tf.float32)

    return tf.map_fn(draw, tf.cast(numbers, tf.int64), fn_output_signature=tf.float32)


def generate(generator: keras.Model, z, labels, batch_size: int = 64) -> np.ndarray:
    """Runs a generator over any number of inputs in batches; returns images `[N, H, W, 3]` in [-1, 1]."""
    z, labels = tf.convert_to_tensor(z, tf.float32), tf.convert_to_tensor(labels, tf.int32)
    call = tf.function(lambda z, labels: generator([z, labels], training=False), reduce_retracing=True)
    parts = [call(z[i : i + batch_size], labels[i : i + batch_size]).numpy() for i in range(0, len(z), batch_size)]
    return np.concatenate(parts)
