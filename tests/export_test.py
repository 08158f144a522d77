"""Exports load without this package, and compute what the generator computes."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import export, networks
from sagan_tf.config import Config

LOAD_ALONE = """
import sys
sys.modules["sagan_tf"] = sys.modules["keras"] = None  # Importing either now fails.
import numpy as np
import tensorflow as tf
directory, inputs, outputs = sys.argv[1:]
arrays = np.load(inputs)
signatures = tf.saved_model.load(directory).signatures
images = signatures["serving_default"](z=tf.constant(arrays["z"]), labels=tf.constant(arrays["labels"]))["images"]
sample = signatures["sample"](labels=tf.constant(arrays["labels"]), seed=tf.constant(7))["images"]
attention = signatures["attention"](z=tf.constant(arrays["z"]), labels=tf.constant(arrays["labels"]))
np.savez(outputs, images=images, sample=sample, attention=attention["attention"], again=attention["images"])
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    config = Config(image_size=32, gf_dim=4, df_dim=2, z_dim=4, num_classes=3, attention_resolution=16)
    keras.utils.set_random_seed(0)
    generator = networks.generator(config)
    generator.get_layer("attention").gamma.assign(0.8)
    directory = tmp_path_factory.mktemp("export") / "model"
    export.export(config, generator, str(directory))
    return generator, directory


class SavedModelTest:
    def test_loads_with_tensorflow_alone(self, exported, tmp_path):
        generator, directory = exported
        z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        labels = np.array([0, 1, 2, 2, 0], np.int32)
        np.savez(tmp_path / "in.npz", z=z, labels=labels)
        arguments = [str(directory), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
        subprocess.run([sys.executable, "-c", LOAD_ALONE, *arguments], check=True, cwd=tmp_path, timeout=120)
        result = np.load(tmp_path / "out.npz")
        expected = generator([tf.constant(z), tf.constant(labels)], training=False)
        np.testing.assert_allclose(result["images"], expected, atol=5e-6)
        np.testing.assert_allclose(result["again"], expected, atol=5e-6)
        assert result["attention"].shape == (5, 16, 16, 8, 8)
        np.testing.assert_allclose(result["attention"].sum((3, 4)), 1.0, rtol=1e-5)
        z_drawn = tf.random.stateless_normal([5, 4], [7, 0])
        drawn = generator([z_drawn, tf.constant(labels)], training=False)
        assert result["sample"].dtype == np.uint8
        assert np.abs(result["sample"] - np.rint((drawn.numpy() + 1) * 127.5)).max() <= 1

    def test_signatures_have_the_documented_names(self, exported):
        signatures = tf.saved_model.load(str(exported[1])).signatures
        assert set(signatures) == {"serving_default", "sample", "attention"}
        _, inputs = signatures["serving_default"].structured_input_signature
        assert inputs["z"] == tf.TensorSpec([None, 4], tf.float32, "z")
        assert inputs["labels"] == tf.TensorSpec([None], tf.int32, "labels")
        assert set(signatures["attention"].structured_outputs) == {"images", "attention"}

    def test_spectral_norms_are_folded(self, exported):
        names = [name for name, _ in tf.train.list_variables(str(exported[1] / "variables" / "variables"))]
        weights = sum(int(np.prod(v.shape)) for v in exported[0].variables if v.name != "u")
        shapes = [shape for name, shape in tf.train.list_variables(str(exported[1] / "variables" / "variables"))]
        assert names
        assert sum(int(np.prod(shape)) for shape in shapes if shape) - weights in range(-2, 3)
