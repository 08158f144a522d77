"""Checkpoints of the reference become ordinary runs."""

import os

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import config as config_lib
from sagan_tf import load_run
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.export import saved_model
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.reference_checkpoint import convert
from sagan_tf.training import Trainer

ROOT = os.path.dirname(os.path.dirname(__file__))
GOLDEN = os.path.join(ROOT, "tests", "golden")
PREFIX = os.path.join(GOLDEN, "sagan_ckpt", "model.ckpt-3")


def write_reference(directory, arrays):
    """Writes arrays as a TF1 checkpoint, as the reference's saver does, and returns its prefix."""
    prefix = os.path.join(str(directory), "model.ckpt-7")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(name, initializer=np.asarray(value)) for name, value in arrays.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, prefix)
    return prefix


def arrays_of(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def reference_arrays(config, seed=0):
    """Returns random arrays with the names and shapes that the reference gives a model of this configuration."""
    rng = np.random.default_rng(seed)
    rows = {"generator": {"dense": "g_snh0", "batch_norm": "g_bn", "conv": "g_snconv_last"}, "discriminator": {}}
    cbn = {"cbn_1": "cbn_0", "cbn_2": "cbn_1"}
    names = {}
    for path in Trainer(config).state():
        network, _, inner = path.partition("/")
        if network not in rows:
            continue
        *scopes, variable = inner.split("/")
        if network == "generator" and scopes[0].startswith("block"):
            layer = {"conv_1": "snconv1", "conv_2": "snconv2", "shortcut": "snconv3", **cbn}[scopes[1]]
            scope = f"g_{scopes[0].replace('_', '')}/{layer}"
        elif scopes[0].startswith("block"):
            layer = {"conv_1": "sn_conv1", "conv_2": "sn_conv2", "shortcut": "sn_conv3"}[scopes[1]]
            scope = f"d_{'optimized_block1' if scopes[0] == 'block_1' else scopes[0].replace('_', '')}/{layer}"
        elif scopes[0] == "attention":
            scope = f"{network[0]}_non_local" + (f"/sn_conv_{scopes[1]}" if len(scopes) > 1 else "")
        elif scopes[0] == "logits":
            scope = {"dense": "d_sn_linear", "embedding": "d_embedding"}[scopes[1]]
        else:
            scope = rows[network][scopes[0]]
        dense = scope in ("g_snh0", "d_sn_linear")
        theirs = {
            "kernel": "Matrix" if dense else "w",
            "bias": "bias" if dense else "biases",
            "embeddings": "embedding_map",
            "moving_mean": "mean" if "cbn" in scope else "moving_mean",
            "moving_variance": "var" if "cbn" in scope else "moving_variance",
            "gamma": "sigma_ratio" if scope.endswith("non_local") else "gamma",
        }.get(variable, variable)
        names[path] = f"model/{scope}/{theirs}"
    arrays, ours = {}, {}
    for path, variable in Trainer(config).state().items():
        if path in names:
            value = rng.standard_normal(variable.shape).astype(np.float32)
            ours[path] = value
            arrays[names[path]] = value.reshape(1, 1, 1, -1) if names[path].endswith(("/mean", "/var")) else value
            if variable.trainable:
                arrays[f"{names[path]}/Adam"] = value + 1
                arrays[f"{names[path]}/Adam_1"] = value**2
    counters = {"beta1_power": 0.0, "beta1_power_1": 0.0, "beta2_power": 0.999**8, "beta2_power_1": 0.999**8}
    arrays |= {name: np.float32(value) for name, value in counters.items()}
    arrays["global_step"] = np.int64(7)
    return arrays, ours


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("converted"))
    return convert(PREFIX, directory), directory


class ConversionTest:
    def test_infers_sizes(self, converted):
        config, directory = converted
        assert (config.gf_dim, config.df_dim, config.z_dim, config.num_classes) == (2, 4, 8, 5)
        assert (config.image_size, config.attention_resolution) == (128, 32)
        assert config_lib.load(directory) == config.replace(model_dir=directory)

    def test_outputs_equal_the_reference(self, converted):
        a = {key: tf.constant(value) for key, value in np.load(os.path.join(GOLDEN, "sagan.npz")).items() if "trained" in key}
        run = load_run(converted[1])
        images = run.generator([a["trained/z"], a["trained/labels"]], training=False)
        logits = run.discriminator([a["trained/images"], a["trained/image_labels"]], training=False)
        np.testing.assert_allclose(images, a["trained/generated_eval"], atol=5e-6)
        np.testing.assert_allclose(logits, a["trained/logits"], rtol=5e-6, atol=5e-6)

    def test_export_equals_the_reference(self, converted, tmp_path):
        config, directory = converted
        a = np.load(os.path.join(GOLDEN, "sagan.npz"))
        saved_model.export(config, load_run(directory).generator, str(tmp_path / "out"))
        serve = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"]
        images = serve(z=tf.constant(a["trained/z"]), labels=tf.constant(a["trained/labels"]))["images"]
        np.testing.assert_allclose(images, a["trained/generated_eval"], atol=5e-6)

    def test_adam_and_step_come_along(self, converted):
        config, directory = converted
        trainer = Trainer(config)
        assert Checkpoints(directory).restore(trainer.state()) == 3
        theirs = arrays_of(PREFIX)
        assert int(trainer.step) == int(trainer.generator_optimizer.iterations) == 3
        state = trainer.state()
        for ours, name in (
            ("generator_adam/block_2_conv_1_kernel_momentum", "model/g_block2/snconv1/w/Adam"),
            ("discriminator_adam/attention_gamma_velocity", "model/d_non_local/sigma_ratio/Adam_1"),
        ):
            np.testing.assert_array_equal(state[ours], theirs[name])


class OtherSizesTest:
    @pytest.mark.parametrize(
        "settings",
        [
            {"attention_resolution": 64, "gf_dim": 4, "df_dim": 8, "z_dim": 5, "num_classes": 3},
            {"attention_resolution": 32, "gf_dim": 4, "df_dim": 2, "z_dim": 16, "num_classes": 7, "loss_type": "kl"},
            {"attention_resolution": 0, "gf_dim": 3, "df_dim": 5, "z_dim": 6, "num_classes": 2, "beta2": 0.999},
        ],
    )
    def test_sizes_and_positions_are_found_and_every_array_lands(self, tmp_path, settings):
        expected = Config(**settings)
        arrays, ours = reference_arrays(expected)
        given = {key: value for key, value in settings.items() if key in ("loss_type", "beta2")}
        config = convert(write_reference(tmp_path, arrays), str(tmp_path / "run"), **given)
        assert config == expected
        trainer = Trainer(config)
        assert Checkpoints(str(tmp_path / "run")).restore(trainer.state()) == 7
        state = trainer.state()
        for name, value in ours.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
        assert int(trainer.discriminator_optimizer.iterations) == 7

    def test_counters_of_synchronised_replicas_are_passed_over(self, tmp_path):
        arrays = arrays_of(PREFIX) | {"d_step": np.int32(3), "g_step": np.int32(3)}
        assert convert(write_reference(tmp_path, arrays), str(tmp_path / "run")).gf_dim == 2


class RefusalTest:
    def converting(self, tmp_path, arrays):
        return convert(write_reference(tmp_path, arrays), str(tmp_path / "run"))

    def test_missing_variables_are_listed(self, tmp_path):
        arrays = arrays_of(PREFIX)
        del arrays["model/g_block3/snconv2/u"], arrays["model/d_block2/sn_conv1/w/Adam"]
        with pytest.raises(UserError, match=r"block_2_conv_1_kernel_momentum is missing.*block_3/conv_2/u is missing"):
            self.converting(tmp_path, arrays)
        assert not (tmp_path / "run").exists()

    def test_extra_variables_are_listed(self, tmp_path):
        with pytest.raises(UserError, match="not of the reference: model/g_extra/w"):
            self.converting(tmp_path, arrays_of(PREFIX) | {"model/g_extra/w": np.zeros(3, np.float32)})

    def test_misshapen_variables_are_listed(self, tmp_path):
        arrays = arrays_of(PREFIX)
        arrays["model/d_block4/sn_conv1/biases"] = np.zeros(3, np.float32)
        with pytest.raises(UserError, match=r"block_4/conv_1/bias is \[3\] instead of \[32\]"):
            self.converting(tmp_path, arrays)

    def test_something_else_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no variable model/g_snh0/Matrix"):
            self.converting(tmp_path, {"weights": np.zeros(3, np.float32)})
        with pytest.raises(UserError, match="no TensorFlow checkpoint"):
            convert(str(tmp_path / "none"), str(tmp_path / "run"))

    def test_settings_that_the_checkpoint_tells_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="--gf_dim, --image_size is read off the checkpoint: leave it out"):
            convert(PREFIX, str(tmp_path / "run"), gf_dim=2, image_size=128)

    def test_existing_run_is_not_touched(self, tmp_path):
        convert(PREFIX, str(tmp_path))
        with pytest.raises(UserError, match="already holds a run"):
            convert(PREFIX, str(tmp_path))
