"""`sagan-convert`: turns a TF1 checkpoint of the reference into a run."""

import dataclasses

from absl import flags

from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs.reference_checkpoint import INFERRED, convert

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("reference_checkpoint", "", "Prefix of the reference's checkpoint, such as DIR/model.ckpt-1000000.")


def main() -> None:
    """Turns a TF1 checkpoint of the reference into a run directory of this package.

    sagan-convert --reference_checkpoint=/path/to/model.ckpt-1000000 --model_dir=/tmp/converted

    Sizes, the number of classes and the position of the attention are read off the checkpoint. What it
    cannot tell (--loss_type, --batch_size, learning rates, --dataset, ...) is taken from the flags;
    the defaults of all but --dataset are the reference's. The result serves sagan-sample and sagan-export without
    further flags and, if --dataset was given here, sagan-evaluate and sagan-train.
    """
    for name in ("reference_checkpoint", "model_dir"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing.")
    names = [field.name for field in dataclasses.fields(Config) if field.name != "model_dir"]
    config = convert(FLAGS.reference_checkpoint, FLAGS.model_dir, **{n: FLAGS[n].value for n in names if FLAGS[n].present})
    found = ", ".join(f"{name} {getattr(config, name)}" for name in INFERRED)
    print(f"Converted to {FLAGS.model_dir}: {found}.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
