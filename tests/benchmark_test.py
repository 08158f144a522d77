"""The benchmark counts the operations that the networks really contain, and writes what it says it writes."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from sagan_tf import networks
from sagan_tf.config import Config

TOOL = pathlib.Path(__file__).parent.parent / "tools" / "benchmark.py"

_spec = importlib.util.spec_from_file_location("benchmark", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def profiled(model, inputs):
    """Returns the operations of convolutions and products that TensorFlow's own profiler finds for one more image.

    What is done for the weights alone, however many images there are, drops out.
    """

    def count(batch):
        specs = [tf.TensorSpec([batch, *shape], dtype) for shape, dtype in inputs]
        graph = tf.function(lambda *arguments: model(list(arguments), training=False)).get_concrete_function(*specs).graph
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        options = tf.compat.v1.profiler.ProfileOptionBuilder(options).with_empty_output().build()
        options["account_type_regexes"] = ["Conv2D", "Conv2DBackpropInput", "MatMul", "BatchMatMulV2"]
        return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops

    return count(2) - count(1)


class FlopTest:
    def test_reference_step_has_the_known_cost(self):
        """18.4 and 9.5 GFLOP for a pass of G and D at 128 px, 150 for a step, 93 with every resampling fused."""
        plain = Config(fused_resampling="never")
        assert [value / 1e9 for value in tool.forward_flop(plain)] == pytest.approx([18.4, 9.5], abs=0.1)
        assert tool.step_flop(plain) / 1e9 == pytest.approx(150, abs=1)
        assert tool.step_flop(plain.replace(fused_resampling="always")) / 1e9 == pytest.approx(93, abs=1)

    @pytest.mark.parametrize("mode", ["never", "auto", "always"])
    def test_formula_counts_what_is_in_the_graph(self, mode):
        config = Config(
            image_size=64,
            gf_dim=8,
            df_dim=8,
            num_classes=4,
            attention_resolution=16,
            fused_resampling=mode,
            generator_spectral_norm=False,
            discriminator_spectral_norm=False,
        )
        generator, discriminator = networks.generator(config), networks.discriminator(config)
        labels = ((), tf.int32)
        counted = (
            profiled(generator, [((config.z_dim,), tf.float32), labels]),
            profiled(discriminator, [((64, 64, 3), tf.float32), labels]),
        )
        # The projection head's two products are not worth counting.
        assert tool.forward_flop(config) == pytest.approx(counted, rel=1e-3)


class CommandTest:
    def test_json_compares_the_variants_with_naive(self, tmp_path):
        sizes = ("--image_size=32", "--gf_dim=2", "--df_dim=2", "--num_classes=3", "--attention_resolution=16", "--batch_size=2")
        command = [sys.executable, TOOL, *sizes, "--parts=step", "--rounds=1", f"--json={tmp_path / 'out.json'}"]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        results = json.loads((tmp_path / "out.json").read_text())
        for name in ("naive", "one_pass", "float32", "bfloat16"):
            assert {"images_per_second", "ratio_to_naive", "peak_memory_mb"} <= results[name].keys()
            assert results[name]["images_per_second"] == pytest.approx(2 / results[name]["seconds_per_step"])
            assert results[name]["peak_memory_mb"] >= results[name]["state_mb"] > 0
        assert results["naive"]["ratio_to_naive"] == 1.0

    def test_unknown_variant_is_refused(self):
        done = subprocess.run([sys.executable, TOOL, "--variants=naif"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "'naif' is none of naive, one_pass" in done.stderr

    def test_backend_that_is_seen_too_late_is_refused(self):
        done = subprocess.run([sys.executable, TOOL, "--backend", "jax"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "write --backend=jax" in done.stderr
