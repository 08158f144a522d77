"""Trains the small classifiers that ship with the package, each on a generated dataset.

python tools/train_embedded_classifier.py --dataset=faces

It writes sagan_tf/assets/DATASET_classifier.npz, the same bytes every time on the same machine. The labels are
the class and what every image carries twice: the patterns of both tiles, or the hues of both irises. In half of
the training images the two differ, so that features that tell agreement from disagreement are learned.
"""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import sagan_tf
from sagan_tf.commands import cli
from sagan_tf.data import faces, twins
from sagan_tf.metrics import classifiers

FLAGS = flags.FLAGS
TRAIN_STEPS, BATCH_SIZE = 3000, 128
SEED = 1234
TEST_BATCHES = 50


def define_flags() -> None:
    """Defines the flags that only this tool has; `--dataset` is that of the settings, here twins or faces."""
    flags.DEFINE_string("output", "", "File to write the weights to; empty: where the package reads them.")


def batch(dataset: str, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns images `[B, 32, 32, 3]` with some noise, classes `[B]`, and what comes twice: bits `[B, 18]` or bins `[B, 2]`."""
    size = classifiers.EMBEDDED_SIZE
    indices = tf.range(2 * BATCH_SIZE, dtype=tf.int64) + step * 2 * BATCH_SIZE
    classes = twins.labels(indices[:BATCH_SIZE], classifiers.EMBEDDED_CLASSES)
    alike = tf.range(BATCH_SIZE) // classifiers.EMBEDDED_CLASSES % 2 == 0
    images, answer = (_twins if dataset == "twins" else _faces)(indices, classes, alike)
    return images + tf.random.stateless_normal([BATCH_SIZE, size, size, 3], [SEED, step]) * 0.1, classes, answer


def _twins(indices: tf.Tensor, classes: tf.Tensor, alike: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = classifiers.EMBEDDED_SIZE
    first, other = tf.split(twins.patterns(indices, SEED, classifiers.EMBEDDED_CELLS), 2)
    second = tf.where(alike[:, None, None], first, other)
    upper = twins.render(first, classes, size)[:, : size // 2]
    lower = twins.render(second, classes, size)[:, size // 2 :]
    bits = tf.reshape(tf.stack([first, second], 1), [BATCH_SIZE, -1])
    return tf.concat([upper, lower], 1), tf.cast(bits, tf.float32)


def _faces(indices: tf.Tensor, classes: tf.Tensor, alike: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = classifiers.EMBEDDED_SIZE
    first, other = ({name: half[i] for name, half in _halves(indices).items()} for i in (0, 1))
    second = {name: tf.where(alike, first[name], other[name]) if name in faces.EYE_TRAITS else first[name] for name in first}
    left = faces.render(first, classes, size)[:, :, : size // 2]
    right = faces.render(second, classes, size)[:, :, size // 2 :]
    hues = tf.stack([first["iris_hue"], second["iris_hue"]], 1)
    return tf.concat([left, right], 2), tf.cast(hues * classifiers.IRIS_BINS, tf.int32)


def _halves(indices: tf.Tensor) -> dict[str, list[tf.Tensor]]:
    return {name: tf.split(values, 2) for name, values in faces.traits(indices, SEED).items()}


def second_loss(dataset: str, answer: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Returns the loss of what comes twice."""
    if dataset == "twins":
        return tf.reduce_mean(keras.losses.binary_crossentropy(answer, output, from_logits=True))
    output = tf.reshape(output, [-1, 2, classifiers.IRIS_BINS])
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(answer, output, from_logits=True))


def second_right(dataset: str, answer: tf.Tensor, output: tf.Tensor) -> np.ndarray:
    """Returns which of the things that come twice are named rightly."""
    if dataset == "twins":
        return (output.numpy() > 0) == (answer.numpy() > 0.5)
    return np.argmax(output.numpy().reshape(-1, 2, classifiers.IRIS_BINS), axis=2) == answer.numpy()


def main() -> None:
    """Trains an embedded classifier and writes its weights."""
    dataset = FLAGS.dataset
    output = FLAGS.output or os.path.join(os.path.dirname(sagan_tf.__file__), "assets", classifiers.embedded_file(dataset))
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    model = classifiers.embedded_network(dataset)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, TRAIN_STEPS))
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(step):
        images, classes, answer = batch(dataset, step)
        with tf.GradientTape() as tape:
            logits, _, second = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(classes, logits, from_logits=True))
            loss += second_loss(dataset, answer, second)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    for step in tf.range(TRAIN_STEPS, dtype=tf.int64):
        loss = train_step(step)
    right = []
    for step in tf.range(TRAIN_STEPS, TRAIN_STEPS + TEST_BATCHES, dtype=tf.int64):
        images, classes, answer = batch(dataset, step)
        logits, _, second = model(images, training=False)
        right.append((np.mean(np.argmax(logits, 1) == classes), np.mean(second_right(dataset, answer, second))))
    right_class, right_second = np.mean(right, axis=0)
    # Features of unit spread, so that distances between them have a size to read: ReLU lets the scale move on.
    images, *_ = batch(dataset, tf.constant(TRAIN_STEPS, tf.int64))
    scale = 1.0 / np.std(model(images, training=False)[1])
    name = classifiers.SECOND_OUTPUT[dataset][0]
    for layer_name, factor in (("features", scale), ("logits", 1.0 / scale), (name, 1.0 / scale)):
        layer = model.get_layer(layer_name)
        layer.kernel.assign(layer.kernel * factor)
        if layer_name == "features":
            layer.bias.assign(layer.bias * factor)
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    weights: dict[str, Any] = {v.path: keras.ops.convert_to_numpy(v).astype(np.float16) for v in model.variables}
    np.savez_compressed(output, **weights)
    print(f"loss {float(loss):.4f}; on new images: class {right_class:.4f}, {name} {right_second:.4f}; {output}")


if __name__ == "__main__":
    cli.run(main, define_flags)
