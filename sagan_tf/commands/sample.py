"""`sagan-sample`: draws images from a trained generator, and shows how they lie in its latent space and to the data."""

import dataclasses
import functools
from typing import Any

from absl import flags

from sagan_tf.commands import cli
from sagan_tf.gallery.modes import ANIMATION_STEPS, STRIP_STEPS, Request, draw
from sagan_tf.runs.run import Run
from sagan_tf.sampling import GRID_COLUMNS

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    define_number = functools.partial(flags.DEFINE_integer, default=0, lower_bound=0)
    flags.DEFINE_string(
        "output",
        "",
        "Where to: FILE.png for one grid, a class per row; else a directory of separate PNGs. --interpolate writes .png, .gif "
        "or .webp; --num_images a directory or .npz.",
    )
    flags.DEFINE_list("classes", [], "Classes to draw, comma-separated numbers; empty: the first ten (--num_images: all).")
    define_number(
        "samples_per_class",
        help=f"Images of each class; 0: {GRID_COLUMNS}, but 2 to walk between with --interpolate=z, and about "
        f"{GRID_COLUMNS} in all with --truncation_sweep and --neighbours.",
    )
    cli.define_z_flags()
    flags.DEFINE_enum(
        "interpolate",
        None,
        ["z", "classes"],
        "Walk from sample to sample of each class, z on a great circle; or from class to class with z held, the parameters "
        "of conditional batch norm on a straight line.",
    )
    define_number(
        "steps",
        help="With --interpolate: images from one end to the next, both counted; "
        f"0: {STRIP_STEPS} in a strip, {ANIMATION_STEPS} in an animation.",
    )
    flags.DEFINE_list("truncation_sweep", [], "Draw the same samples under each of these bounds of z, a row each; 0: no bound.")
    define_number(
        "neighbours",
        help="Show so many of the nearest training images of each sample, by pixels and by features of --classifier.",
    )
    define_number(
        "num_images",
        help="Draw so many images, classes in turn, into a new directory or an .npz of uint8 images and int32 labels: those that "
        "sagan-evaluate measures.",
    )
    cli.define_checkpoint_flags()


def main() -> None:
    """Draws images from a trained generator, as one grid or as separate files; or shows how they vary.

    sagan-sample --model_dir=DIR --output=grid.png
    sagan-sample --model_dir=DIR --output=images/ --classes=0,3 --samples_per_class=100 --truncation=1.0
    sagan-sample --model_dir=DIR --output=samples.npz --num_images=50000
    sagan-sample --model_dir=DIR --output=walk.gif --interpolate=z
    sagan-sample --model_dir=DIR --output=classes.png --interpolate=classes --classes=0,3,5
    sagan-sample --model_dir=DIR --output=sweep.png --truncation_sweep=2,1,0.5
    sagan-sample --model_dir=DIR --output=neighbours.png --neighbours=4 --classifier=faces
    """
    values: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Request)}
    request = Request(**values)
    config = cli.trained_config()
    print(draw(Run(config.model_dir, config), request))


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
