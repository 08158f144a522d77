"""Makes a run of what `tools/jax_train.py` leaves, so that every command can read it.

python tools/run_of_arrays.py --arrays=trained/faces64.npz --model_dir=runs/faces64

The run holds the settings and one checkpoint. It can be sampled, measured, exported and reported; trained on it can be
only if the file holds the whole state (`--keep=all`).
"""

import json
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import app, flags

from sagan_tf import files
from sagan_tf.config import REMOVED, Config
from sagan_tf.runs.checkpoints import mismatches
from sagan_tf.runs.run import Run
from sagan_tf.training import Trainer

FLAGS = flags.FLAGS
flags.DEFINE_string("arrays", None, "File of one run.", required=True)
flags.DEFINE_string("model_dir", None, "Directory to make a run of; it must not hold one.", required=True)


def main(_: Sequence[str]) -> None:
    """Writes the settings and the checkpoint."""
    with np.load(FLAGS.arrays) as file:
        facts = json.loads(str(file["facts"]))
        values = {name.removeprefix("state/"): file[name] for name in file if name.startswith("state/")}
    config = Config(**{name: value for name, value in json.loads(facts["config"]).items() if name not in REMOVED})
    if os.path.exists(os.path.join(FLAGS.model_dir, "config.json")):
        raise app.UsageError(f"--model_dir={FLAGS.model_dir} already holds a run: choose another.")
    state = Trainer(config).state()
    held = {name: variable for name, variable in state.items() if name in values}
    problems = mismatches({name: list(value.shape) for name, value in values.items()}, held)
    if problems:
        raise app.UsageError(f"--arrays={FLAGS.arrays} does not fit its settings: {'; '.join(problems)}.")
    for name, variable in held.items():
        variable.assign(tf.cast(values[name], variable.dtype))
    with files.writing("model_dir", FLAGS.model_dir):
        os.makedirs(FLAGS.model_dir, exist_ok=True)
    checkpoints = Run(FLAGS.model_dir, config).checkpoints
    checkpoints.save(int(values["step"]), held)
    checkpoints.wait()
    Run.create(config.replace(model_dir=FLAGS.model_dir))  # Last: it makes the directory a run.


if __name__ == "__main__":
    app.run(main)
