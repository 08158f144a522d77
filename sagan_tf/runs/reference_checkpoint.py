"""Reads TF1 checkpoints of the reference (`brain-research/self-attention-gan`).

`read` turns one into a configuration and a state under this package's names; `convert` makes a run of it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sagan_tf import config as config_lib
from sagan_tf import files
from sagan_tf.architecture import DISCRIMINATOR, GENERATOR
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs.checkpoints import mismatches
from sagan_tf.runs.run import Run
from sagan_tf.training import Trainer

__all__ = ["INFERRED", "convert", "infer_config", "our_name", "read", "to_state"]

# The settings that a checkpoint tells.
INFERRED = ("image_size", "z_dim", "gf_dim", "df_dim", "num_classes", "attention_resolution")
IMAGE_SIZE = 128  # The reference has no other.

# The reference's scope (a regular expression) and this package's layer, one row each.
_SCOPES = (
    (r"g_snh0", "generator/dense"),
    (r"g_block(\d+)/cbn_0", r"generator/block_\1/cbn_1"),
    (r"g_block(\d+)/cbn_1", r"generator/block_\1/cbn_2"),
    (r"g_block(\d+)/snconv([12])", r"generator/block_\1/conv_\2"),
    (r"g_block(\d+)/snconv3", r"generator/block_\1/shortcut"),
    (r"g_bn", "generator/batch_norm"),
    (r"g_snconv_last", "generator/conv"),
    (r"g_non_local", "generator/attention"),
    (r"g_non_local/sn_conv_(\w+)", r"generator/attention/\1"),
    (r"d_optimized_block1/sn_conv([12])", r"discriminator/block_1/conv_\1"),
    (r"d_optimized_block1/sn_conv3", "discriminator/block_1/shortcut"),
    (r"d_block(\d+)/sn_conv([12])", r"discriminator/block_\1/conv_\2"),
    (r"d_block(\d+)/sn_conv3", r"discriminator/block_\1/shortcut"),
    (r"d_non_local", "discriminator/attention"),
    (r"d_non_local/sn_conv_(\w+)", r"discriminator/attention/\1"),
    (r"d_sn_linear", "discriminator/logits/dense"),
    (r"d_embedding", "discriminator/logits/embedding"),
)
_VARIABLES = {
    "w": "kernel",
    "Matrix": "kernel",
    "biases": "bias",
    "bias": "bias",
    "u": "u",
    "gamma": "gamma",
    "beta": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "sigma_ratio": "gamma",
    "embedding_map": "embeddings",
}
_SLOTS = {"Adam": "momentum", "Adam_1": "velocity"}
# Counters beside the model; the reference writes the last two when it synchronises replicas.
_COUNTERS = ("global_step", "beta1_power", "beta1_power_1", "beta2_power", "beta2_power_1", "d_step", "g_step")


def convert(prefix: str, model_dir: str, **settings: Any) -> Config:
    """Makes a run of a checkpoint.

    Args:
      prefix: of the reference's checkpoint.
      model_dir: directory to make; it must not hold a run already.
      **settings: what the checkpoint cannot tell.

    Returns:
      The settings of the run, without `model_dir`.

    Raises:
      UserError: if variables are missing, extra or misshapen (listed), a setting is read off the checkpoint,
        or `model_dir` is taken.
    """
    if inferred := [f"--{name}" for name in settings if name in INFERRED]:
        raise UserError(f"{', '.join(inferred)} is read off the checkpoint: leave it out.")
    model_dir = files.resolve(model_dir, "model_dir", checkpoints=True)
    if config_lib.is_saved(model_dir):
        raise UserError(f"--model_dir={model_dir} already holds a run: choose another.")
    config, values = read(prefix, **settings)
    state = Trainer(config).state()
    problems = mismatches({name: list(np.shape(value)) for name, value in values.items()}, state)
    if problems:
        raise UserError(f"{prefix} cannot be converted: {'; '.join(problems)}.")
    for name, variable in state.items():
        variable.assign(values[name])
    with files.writing("model_dir", model_dir):
        files.make_dirs(model_dir)
    checkpoints = Run(model_dir, config).checkpoints
    checkpoints.save(int(values["step"]), state)
    checkpoints.wait()
    Run.create(config.replace(model_dir=model_dir))  # Last: it makes the directory a run.
    return config


def read(prefix: str, **settings: Any) -> tuple[Config, dict[str, np.ndarray]]:
    """Reads a checkpoint of the reference.

    Args:
      prefix: path of the checkpoint, such as `.../model.ckpt-1000000`.
      **settings: what a checkpoint cannot tell (loss, learning rates, batch size, ...).

    Returns:
      The configuration and the whole state of a run, by this package's checkpoint names. The
      number of Adam's updates is read off `beta2_power`; while that has not yet decayed to zero in
      float32 (about 100,000 updates) it is exact, afterwards the global step stands in for it.

    Raises:
      UserError: if it cannot be read, or has unknown variables.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise UserError(f"--reference_checkpoint={prefix} is no TensorFlow checkpoint ({str(error).splitlines()[0]}).") from error
    shapes = reader.get_variable_to_shape_map()
    config = infer_config(shapes, **settings)
    state = to_state({name: reader.get_tensor(name) for name in shapes if name not in _COUNTERS})
    missing = [name for name in ("global_step", "beta2_power", "beta2_power_1") if name not in shapes]
    if missing:
        raise UserError(f"The checkpoint {prefix} has no variable {', '.join(missing)}.")
    step = int(reader.get_tensor("global_step"))
    # Both optimizers count alike (one update each per step), so it does not matter which is which.
    powers = [float(reader.get_tensor(name)) for name in ("beta2_power", "beta2_power_1")]
    updates = [_updates(power, config.beta2) if power > 1e-35 else step for power in powers]
    if (updates[0] != updates[1]) and config.g_step == config.d_step:
        raise UserError(
            f"The two optimizers of {prefix} have made {updates[0]} and {updates[1]} updates: set --g_step and --d_step."
        )
    discriminator_updates, generator_updates = sorted(updates, reverse=config.d_step > config.g_step)
    state["step"] = np.int64(step)
    state["rollbacks"] = np.int64(0)
    for network, rate, count in (
        ("generator", config.generator_learning_rate, generator_updates),
        ("discriminator", config.discriminator_learning_rate, discriminator_updates),
    ):
        state[f"{network}_adam/iteration"] = np.int64(count)
        state[f"{network}_adam/learning_rate"] = np.float32(rate)
    return config, state


def infer_config(shapes: Mapping[str, list[int]], **settings: Any) -> Config:
    """Returns the configuration that variables of these shapes belong to.

    Args:
      shapes: shapes by the reference's names.
      **settings: what a checkpoint cannot tell (loss, learning rates, batch size, ...).

    Raises:
      UserError: naming a variable without which the sizes are unknown, or that fits none.
    """

    def shape(name: str) -> list[int]:
        if name not in shapes:
            raise UserError(f"The checkpoint has no variable {name}: it is not one of the reference's, or not whole.")
        return list(shapes[name])

    z_dim, dense_units = shape("model/g_snh0/Matrix")
    start, width = GENERATOR[IMAGE_SIZE][0]
    gf_dim = dense_units // (start * start * width)
    df_dim = shape("model/d_optimized_block1/sn_conv1/w")[-1]
    positions = {0}
    for name, table, base in (
        ("model/g_non_local/sn_conv_theta/w", GENERATOR[IMAGE_SIZE][1:], gf_dim),
        ("model/d_non_local/sn_conv_theta/w", DISCRIMINATOR[IMAGE_SIZE][:-1], df_dim),
    ):
        if name in shapes:
            found = {resolution for resolution, multiple in table if multiple * base == shape(name)[2]}
            positions = found if positions == {0} else positions & found
    if len(positions) != 1:
        raise UserError("The attention layers' channels fit no position that generator and discriminator share.")
    return Config(
        image_size=IMAGE_SIZE,
        z_dim=z_dim,
        gf_dim=gf_dim,
        df_dim=df_dim,
        num_classes=shape("model/d_embedding/embedding_map")[0],
        attention_resolution=positions.pop(),
        **settings,
    )


def to_state(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the reference's arrays to ours; moving averages `[1, 1, 1, C]` become `[C]`.

    Raises:
      UserError: listing the names that the reference does not have.
    """
    state, unknown = {}, []
    for name, value in arrays.items():
        flat = value.shape[:-1] == (1, 1, 1) and name.endswith(("/mean", "/var"))
        if ours := our_name(name):
            state[ours] = value.reshape(-1) if flat else value
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"These variables are not of the reference: {', '.join(sorted(unknown))}.")
    return state


def our_name(name: str) -> str | None:
    """Returns the checkpoint name here of a reference variable or Adam slot; None if it is unknown."""
    match = re.fullmatch(r"model/(.+?)/([^/]+)(?:/(Adam|Adam_1))?", name)
    if not match:
        return None
    scope, variable, slot = match.groups()
    for pattern, layer in _SCOPES:
        if re.fullmatch(pattern, scope) and variable in _VARIABLES:
            path = f"{re.sub(pattern, layer, scope)}/{_VARIABLES[variable]}"
            if slot:  # Keras names a slot after the path of its variable.
                network, _, inner = path.partition("/")
                return f"{network}_adam/{inner.replace('/', '_')}_{_SLOTS[slot]}"
            return path
    return None


def _updates(power: float, beta: float) -> int:
    """Returns how many updates Adam has made, from its `beta_power = beta^(updates + 1)`."""
    return round(math.log(power) / math.log(beta)) - 1 if power > 0 else 0
