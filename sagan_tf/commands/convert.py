r"""Turns a TF1 checkpoint of the reference into a run directory of this package.

python tools/convert_reference_checkpoint.py \
  --reference_checkpoint=/path/to/model.ckpt-1000000 --model_dir=/tmp/converted

Sizes, the number of classes and the position of the attention are read off the checkpoint. What it
cannot tell (--loss_type, --batch_size, learning rates, --dataset, ...) is taken from the flags;
the defaults of all but --dataset are the reference's. The result serves sagan-sample and sagan-export without
further flags and, if --dataset was given here, sagan-evaluate and sagan-train.
"""

import dataclasses
import os

import numpy as np
from absl import flags

from sagan_tf import config as config_lib
from sagan_tf.commands import cli
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.runs import reference_checkpoint
from sagan_tf.runs.checkpoints import Checkpoints, mismatches, write_file
from sagan_tf.training import Trainer

FLAGS = flags.FLAGS
_INFERRED = ("image_size", "z_dim", "gf_dim", "df_dim", "num_classes", "attention_resolution")


def define_flags() -> None:
    """Defines the flags that only this tool has."""
    flags.DEFINE_string("reference_checkpoint", "", "Prefix of the reference's checkpoint, such as DIR/model.ckpt-1000000.")


def convert(prefix: str, model_dir: str, **settings) -> config_lib.Config:
    """Converts a checkpoint and returns the configuration of the new `model_dir`.

    Args:
      prefix: of the reference's checkpoint.
      model_dir: directory to make; it must not hold a run already.
      **settings: what the checkpoint cannot tell.

    Raises:
      UserError: if variables are missing, extra or misshapen (listed), or `model_dir` is taken.
    """
    if os.path.exists(os.path.join(model_dir, config_lib.CONFIG_FILE)):
        raise UserError(f"--model_dir={model_dir} already holds a run: choose another.")
    config, values = reference_checkpoint.read(prefix, **settings)
    state = Trainer(config).state()
    problems = mismatches({name: list(np.shape(value)) for name, value in values.items()}, state)
    if problems:
        raise UserError(f"{prefix} cannot be converted: {'; '.join(problems)}.")
    for name, variable in state.items():
        variable.assign(values[name])
    with writing("model_dir", model_dir):
        os.makedirs(model_dir, exist_ok=True)
        checkpoints = Checkpoints(model_dir)
        checkpoints.save(int(values["step"]), state)
        checkpoints.wait()
        write_file(os.path.join(model_dir, config_lib.CONFIG_FILE), config.to_json())
    return config


def main() -> None:
    """Turns a TF1 checkpoint of the reference into a run directory of this package.

    python tools/convert_reference_checkpoint.py --reference_checkpoint=PREFIX --model_dir=DIR
    """
    for name in ("reference_checkpoint", "model_dir"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing.")
    names = [field.name for field in dataclasses.fields(config_lib.Config) if field.name != "model_dir"]
    given = {name: FLAGS[name].value for name in names if FLAGS[name].present}
    if inferred := [f"--{name}" for name in given if name in _INFERRED]:
        raise UserError(f"{', '.join(inferred)} is read off the checkpoint: leave it out.")
    config = convert(FLAGS.reference_checkpoint, FLAGS.model_dir, **given)
    found = ", ".join(f"{name} {getattr(config, name)}" for name in _INFERRED)
    print(f"Converted to {FLAGS.model_dir}: {found}.")


if __name__ == "__main__":
    cli.run(main, define_flags)
