"""`sagan-attention`: shows what each point of an image attends to, as a figure or as a page to explore."""

import dataclasses
from typing import Any

from absl import flags

from sagan_tf.attention.outputs import FIGURE_SAMPLES, PAGE_SAMPLES, Request, show
from sagan_tf.commands import cli
from sagan_tf.runs.run import Run

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("output", "", "FILE.png for a figure: images with query points, and where each point looks.")
    flags.DEFINE_string("html", "", "FILE.html for a page to explore with mouse, finger or keyboard, all in this one file.")
    flags.DEFINE_string("queries", "", "Points of the figure in image pixels, x,y;x,y; empty: those with the most distinct maps.")
    flags.DEFINE_string("images", "", "Image or folder of images: show the discriminator's attention on these.")
    flags.DEFINE_string("saved_model", "", "Directory of a SavedModel of sagan-export, in place of --model_dir.")
    flags.DEFINE_list(
        "classes",
        [],
        "Classes to draw, comma-separated numbers; empty: the first ten. Of --images without class folders: the label.",
    )
    flags.DEFINE_integer(
        "samples_per_class",
        0,
        f"Images of each class; 0: so many that a figure holds about {FIGURE_SAMPLES}, a page {PAGE_SAMPLES}.",
        lower_bound=0,
    )
    cli.define_z_flags()
    cli.define_checkpoint_flags()


def main() -> None:
    """Shows what each point of an image attends to: a figure as in the paper, or a page to explore.

    sagan-attention --model_dir=DIR --output=attention.png
    sagan-attention --model_dir=DIR --html=attention.html
    sagan-attention --model_dir=DIR --output=attention.png --classes=3 --queries='8,8;20,12'
    sagan-attention --model_dir=DIR --output=real.png --images=FOLDER   (the discriminator on real images)
    sagan-attention --saved_model=EXPORT --output=attention.png

    The figure of a training run also goes to its TensorBoard summaries.
    """
    values: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Request)}
    request = Request(**values)
    config = None if request.saved_model else cli.trained_config()
    for sentence in show(request, Run(config.model_dir, config) if config else None):
        print(sentence)


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
