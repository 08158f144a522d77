"""The step of `tools/jax_train.py`, against the package's own."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.training import Trainer

TOOL = os.path.join(os.path.dirname(os.path.dirname(__file__)), "tools", "jax_train.py")
SETTINGS = {
    "image_size": 32,
    "num_classes": 3,
    "gf_dim": 2,
    "df_dim": 2,
    "z_dim": 8,
    "attention_resolution": 16,
    "batch_size": 4,
    "ema_decay": 0.5,
    "beta2": 0.9,
    "generator_learning_rate": 2e-4,
    "discriminator_learning_rate": 8e-4,
    "fused_resampling": "never",
    # So large that a gradient of nothing but rounding, as a bias before batch norm has, moves nothing.
    "adam_epsilon": 1e-3,
}
STEPS = 2

STEPS_UNDER_JAX = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("jax_train", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
import jax
from unittest import mock

given = np.load(sys.argv[2])
config = tool.Config(**eval(str(given["settings"])))
program = tool.Program(config, 3)
state = program.initial(config)
for name, model in program.models.items():
    state["weights"][name] = [given[f"{name}/{v.path}"] for v in model.variables]
state["average"] = [given[f"ema_generator/{v.path}"] for v in program.models["generator"].variables]
stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), state)
rows = []

@jax.jit
def step_of_both(stacked, batch, draws):
    with mock.patch.object(tool.keras.ops, "conv", tool.convolve_by_products):
        return jax.vmap(program.step, in_axes=(0, None, None))(stacked, batch, draws)

for step in range(int(given["steps"])):
    draws = {n: (given[f"{step}/{n}/z"], given[f"{step}/{n}/labels"]) for n in tool.NETWORKS}
    batch = given[f"{step}/images"], given[f"{step}/labels"]
    stacked, logged = step_of_both(stacked, batch, draws)
    rows.append(logged[1])
second = jax.tree.map(lambda leaf: leaf[1], stacked)
np.savez(sys.argv[3], logged=np.array(rows), **tool.state_arrays(program, second))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The state and the losses after some steps of the package, and of the tool from the same start."""
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("jax_train")
    config = Config(**SETTINGS)
    trainer = Trainer(config)
    given = {name: np.array(variable) for name, variable in trainer.state().items()}
    given |= {"settings": repr(SETTINGS), "steps": STEPS}
    rng = np.random.default_rng(0)
    losses = []
    for step in range(STEPS):
        images = rng.uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
        labels = np.array([0, 1, 2, 0], np.int32)
        draws = {}
        for update, name in enumerate(("generator", "discriminator")):
            z, fake_labels = trainer.noise(tf.constant(step, tf.int64), update)
            draws[name] = z, fake_labels
            given |= {f"{step}/{name}/z": np.array(z), f"{step}/{name}/labels": np.array(fake_labels)}
        given |= {f"{step}/images": images, f"{step}/labels": labels}
        generated = trainer.update_generator(*draws["generator"])
        told = trainer.update_discriminator(tf.constant(images), tf.constant(labels), *draws["discriminator"])
        trainer._update_average()
        trainer.step.assign_add(1)
        losses.append([generated["generator_loss"], told["discriminator_loss_real"], told["discriminator_loss_fake"]])
    np.savez(folder / "given.npz", **given)
    command = [sys.executable, "-c", STEPS_UNDER_JAX, TOOL, str(folder / "given.npz"), str(folder / "after.npz")]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {name: np.array(value) for name, value in trainer.state().items()}, np.array(losses), dict(np.load(folder / "after.npz"))


@pytest.mark.slow  # Half a minute of compiling.
class JaxTrainTest:
    def test_steps_equal_those_of_the_package(self, both):
        expected, losses, actual = both
        np.testing.assert_allclose(actual.pop("logged"), losses, rtol=1e-5, atol=1e-6)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            network = name.split("/")[0]
            of_network = [np.abs(other).max() for path, other in expected.items() if path.split("/")[0] == network]
            scale = max(of_network) if "adam" in network else 1.0
            np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=2e-5 * scale, err_msg=name)
