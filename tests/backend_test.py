"""Layers, augmentation and networks on another Keras backend, and without TensorFlow."""

import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)

FORWARD = """
import json, sys
import numpy as np
from sagan_tf import networks
from sagan_tf.config import Config
path, arrays = sys.argv[1], dict(np.load(sys.argv[1]))
meta = json.loads(str(arrays["meta"]))
attention = 32 if any("g_non_local" in key for key in arrays) else 0
config = Config(
    gf_dim=meta["gf"], df_dim=meta["df"], z_dim=meta["z"], num_classes=meta["classes"], attention_resolution=attention
)
values = np.load(sys.argv[2])
networks_built = {"generator": networks.generator(config), "discriminator": networks.discriminator(config)}
for name, model in networks_built.items():
    for variable in model.variables:
        variable.assign(values[f"{name}/{variable.path}"])
images = networks_built["generator"]([arrays["forward/z"], arrays["forward/fake_labels"]], training=False)
logits = networks_built["discriminator"]([arrays["forward/real_images"], arrays["forward/real_labels"]], training=False)
for actual, expected in ((images, arrays["forward/generated_eval"]), (logits, arrays["forward/logits_real"])):
    error = np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))
    assert error < 5e-6, error
assert "tensorflow" not in sys.modules
"""


@pytest.fixture
def jax_environment():
    pytest.importorskip("jax")
    return {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


class JaxTest:
    @pytest.mark.parametrize(
        ("files", "chosen"),
        [
            (("layers_test.py", "resampling_test.py"), ""),
            # Of the rest each new shape would be compiled anew.
            (("augmentation_test.py",), "GradientTest or edges or half_precision"),
        ],
        ids=["layers", "augmentation"],
    )
    def test_numeric_tests_pass(self, jax_environment, files, chosen):
        paths = [os.path.join(HERE, name) for name in files]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "-k", chosen, *paths]
        result = subprocess.run(command, env=jax_environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout

    @pytest.mark.parametrize("name", ["sagan", "baseline"])
    def test_forward_passes_match_the_reference_without_tensorflow(self, jax_environment, tmp_path, name):
        import numpy as np

        from sagan_tf.runs import reference_checkpoint

        golden = os.path.join(HERE, "golden", f"{name}.npz")
        arrays = {key.removeprefix("init/"): value for key, value in np.load(golden).items() if key.startswith("init/")}
        np.savez(tmp_path / "ours.npz", **reference_checkpoint.to_state(arrays))
        command = [sys.executable, "-c", FORWARD, golden, str(tmp_path / "ours.npz")]
        result = subprocess.run(command, env=jax_environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
