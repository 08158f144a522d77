"""Trains the small classifier that ships with the package, on the generated dataset `faces`.

python tools/train_faces_classifier.py

It writes sagan_tf/assets/faces_classifier.npz, the same bytes every time on the same machine. The labels are
the expression and the hues of both irises. In half of the training images the two eyes differ, so that features
that tell agreement from disagreement are learned.
"""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import sagan_tf
from sagan_tf.commands import cli
from sagan_tf.data import faces
from sagan_tf.metrics import classifiers

FLAGS = flags.FLAGS
TRAIN_STEPS, BATCH_SIZE = 3000, 128
SEED = 1234
TEST_BATCHES = 50


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_string("output", "", "File to write the weights to; empty: where the package reads them.")


def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns images `[B, 32, 32, 3]` with some noise, classes `[B]`, and the bins of both irises' hues `[B, 2]`."""
    size = classifiers.FACES_SIZE
    indices = tf.range(2 * BATCH_SIZE, dtype=tf.int64) + step * 2 * BATCH_SIZE
    classes = faces.labels(indices[:BATCH_SIZE], len(faces.EXPRESSIONS))
    alike = tf.range(BATCH_SIZE) // len(faces.EXPRESSIONS) % 2 == 0
    halves = {name: tf.split(values, 2) for name, values in faces.traits(indices, SEED).items()}
    first, other = ({name: half[i] for name, half in halves.items()} for i in (0, 1))
    second = {name: tf.where(alike, first[name], other[name]) if name in faces.EYE_TRAITS else first[name] for name in first}
    left = faces.render(first, classes, size)[:, :, : size // 2]
    right = faces.render(second, classes, size)[:, :, size // 2 :]
    noise = tf.random.stateless_normal([BATCH_SIZE, size, size, 3], [SEED, step]) * 0.1
    hues = tf.stack([first["iris_hue"], second["iris_hue"]], 1)
    return tf.concat([left, right], 2) + noise, classes, tf.cast(hues * classifiers.IRIS_BINS, tf.int32)


def by_iris(logits: tf.Tensor) -> tf.Tensor:
    """Returns the logits of hues as `[B, 2, bins]`."""
    return tf.reshape(logits, [-1, 2, classifiers.IRIS_BINS])


def main() -> None:
    """Trains the classifier and writes its weights."""
    output = FLAGS.output or os.path.join(os.path.dirname(sagan_tf.__file__), "assets", classifiers.FACES_FILE)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    model = classifiers.faces_network()
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, TRAIN_STEPS))
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(step):
        images, classes, bins = batch(step)
        with tf.GradientTape() as tape:
            logits, _, irises = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(classes, logits, from_logits=True))
            loss += tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(bins, by_iris(irises), from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    for step in tf.range(TRAIN_STEPS, dtype=tf.int64):
        loss = train_step(step)
    right = []
    for step in tf.range(TRAIN_STEPS, TRAIN_STEPS + TEST_BATCHES, dtype=tf.int64):
        images, classes, bins = batch(step)
        logits, _, irises = model(images, training=False)
        right.append((np.mean(np.argmax(logits, 1) == classes), np.mean(np.argmax(by_iris(irises), 2) == bins)))
    right_class, right_irises = np.mean(right, axis=0)
    # Features of unit spread, so that distances between them have a size to read: ReLU lets the scale move on.
    images, *_ = batch(tf.constant(TRAIN_STEPS, tf.int64))
    scale = 1.0 / np.std(model(images, training=False)[1])
    for layer_name, factor in (("features", scale), ("logits", 1.0 / scale), ("irises", 1.0 / scale)):
        layer = model.get_layer(layer_name)
        layer.kernel.assign(layer.kernel * factor)
        if layer_name == "features":
            layer.bias.assign(layer.bias * factor)
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    weights: dict[str, Any] = {v.path: keras.ops.convert_to_numpy(v).astype(np.float16) for v in model.variables}
    np.savez_compressed(output, **weights)
    print(f"loss {float(loss):.4f}; on new images: class {right_class:.4f}, irises {right_irises:.4f}; {output}")


if __name__ == "__main__":
    cli.run(main, define_flags, settings=False)
