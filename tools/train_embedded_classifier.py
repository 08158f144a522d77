"""Trains the small classifier that ships with the package, on the dataset twins.

python tools/train_embedded_classifier.py

It writes sagan_tf/assets/twins_classifier.npz, the same bytes every time on the same machine. The labels
are the class and the patterns of both tiles; half of the training images carry two different patterns, so
that features that tell agreement from disagreement are learned.
"""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import sagan_tf
from sagan_tf.commands import cli
from sagan_tf.data import twins
from sagan_tf.metrics import classifiers

FLAGS = flags.FLAGS
TRAIN_STEPS, BATCH_SIZE = 3000, 128


def define_flags() -> None:
    """Defines the flags that only this tool has."""
    path = os.path.join(os.path.dirname(sagan_tf.__file__), "assets", classifiers.EMBEDDED_FILE)
    flags.DEFINE_string("output", path, "File to write the weights to.")


def batch(step: int, seed: int = 1234) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns images `[B, 32, 32, 3]` with some noise, classes `[B]` and pattern bits `[B, 18]`."""
    cells, size = classifiers.EMBEDDED_CELLS, classifiers.EMBEDDED_SIZE
    indices = tf.range(2 * BATCH_SIZE, dtype=tf.int64) + step * 2 * BATCH_SIZE
    first, other = tf.split(twins.patterns(indices, seed, cells), 2)
    classes = twins.labels(indices[:BATCH_SIZE], classifiers.EMBEDDED_CLASSES)
    alike = (tf.range(BATCH_SIZE) // classifiers.EMBEDDED_CLASSES % 2 == 0)[:, None, None]
    second = tf.where(alike, first, other)
    upper = twins.render(first, classes, size)[:, : size // 2]
    lower = twins.render(second, classes, size)[:, size // 2 :]
    noise = tf.random.stateless_normal([BATCH_SIZE, size, size, 3], [seed, step]) * 0.1
    bits = tf.reshape(tf.stack([first, second], 1), [BATCH_SIZE, -1])
    return tf.concat([upper, lower], 1) + noise, classes, tf.cast(bits, tf.float32)


def main() -> None:
    """Trains the embedded classifier and writes its weights."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    model = classifiers.embedded_network()
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, TRAIN_STEPS))
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(step):
        images, classes, bits = batch(step)
        with tf.GradientTape() as tape:
            logits, _, patterns = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(classes, logits, from_logits=True))
            loss += tf.reduce_mean(keras.losses.binary_crossentropy(bits, patterns, from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    for step in tf.range(TRAIN_STEPS, dtype=tf.int64):
        loss = train_step(step)
    images, classes, bits = batch(tf.constant(TRAIN_STEPS, tf.int64))
    logits, _, patterns = model(images, training=False)
    right_class = np.mean(np.argmax(logits, 1) == classes)
    right_bits = np.mean((patterns.numpy() > 0) == (bits.numpy() > 0.5))
    # Features of unit spread, so that distances between them have a size to read: ReLU lets the scale move on.
    scale = 1.0 / np.std(model(images, training=False)[1])
    for name, factor in (("features", scale), ("logits", 1.0 / scale), ("patterns", 1.0 / scale)):
        layer = model.get_layer(name)
        layer.kernel.assign(layer.kernel * factor)
        if name == "features":
            layer.bias.assign(layer.bias * factor)
    os.makedirs(os.path.dirname(FLAGS.output), exist_ok=True)
    weights: dict[str, Any] = {v.path: np.array(v).astype(np.float16) for v in model.variables}
    np.savez_compressed(FLAGS.output, **weights)
    print(f"loss {float(loss):.4f}; on new images: class {right_class:.3f}, pattern cells {right_bits:.3f}; {FLAGS.output}")


if __name__ == "__main__":
    cli.run(main, define_flags, settings=False)
