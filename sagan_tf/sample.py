"""`sagan-sample`: draws images from a trained generator."""

import os

from sagan_tf import cli  # isort: skip  (sets TensorFlow's log level before it is imported)

import numpy as np
import tensorflow as tf
from absl import flags

from sagan_tf import config as config_lib
from sagan_tf import visualization
from sagan_tf.checkpoints import restore
from sagan_tf.config import Config
from sagan_tf.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("output", "", "Where to: FILE.png for one grid, a class per row; else a directory of separate PNGs.")
    flags.DEFINE_list("classes", [], "Classes to draw, comma-separated numbers; empty: the first ten.")
    flags.DEFINE_integer("samples_per_class", visualization.GRID_COLUMNS, "Images of each class.", lower_bound=1)
    flags.DEFINE_integer("sample_seed", 0, "Seed of z.", lower_bound=0)
    flags.DEFINE_float("truncation", 0.0, "Largest absolute value of a component of z; 0: no bound.", lower_bound=0.0)
    flags.DEFINE_integer("checkpoint_step", None, "Step of the checkpoint to read; by default the newest.")
    flags.DEFINE_boolean("use_ema", None, "Use the averaged generator; by default if the run has one.")


def parse_classes(names: list[str], config: Config) -> list[int]:
    """Returns the class numbers meant by `--classes`.

    Raises:
      UserError: if one is not a number, or out of range.
    """
    if not names:
        return list(range(min(config.num_classes or 1, visualization.GRID_CLASSES)))
    for name in names:
        if not name.strip().isdigit() or int(name) >= max(config.num_classes, 1):
            raise UserError(f"--classes: {name!r} is not a class; they are 0 to {max(config.num_classes, 1) - 1}.")
    return [int(name) for name in names]


def main() -> None:
    """Draws images from a trained generator, as one grid or as separate files.

    sagan-sample --model_dir=DIR --output=grid.png
    sagan-sample --model_dir=DIR --output=images/ --classes=0,3 --samples_per_class=100 --truncation=1.0
    """
    if not FLAGS.output:
        raise UserError("--output is missing: name a .png file for a grid, or a directory for separate images.")
    config = config_lib.load(cli.trained_config().model_dir)
    classes, per_class = parse_classes(FLAGS.classes, config), FLAGS.samples_per_class
    generator, _ = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    labels = np.repeat(classes, per_class)
    z = visualization.draw_z(tf.range(len(labels)), config.z_dim, FLAGS.sample_seed, FLAGS.truncation)
    images = visualization.generate(generator, z, labels)
    try:
        if FLAGS.output.lower().endswith(".png"):
            visualization.save_png(FLAGS.output, visualization.grid(images, per_class))
            print(f"{len(images)} images, a class per row, in {FLAGS.output}")
        else:
            for index, (image, label) in enumerate(zip(visualization.to_uint8(images), labels, strict=True)):
                visualization.save_png(os.path.join(FLAGS.output, f"class{label:04d}_{index % per_class:06d}.png"), image)
            print(f"{len(images)} images in {FLAGS.output}")
    except OSError as error:
        raise UserError(f"--output={FLAGS.output} cannot be written ({error.strerror}): choose another.") from error


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
