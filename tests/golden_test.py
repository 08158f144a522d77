"""The networks and the trainer against arrays that the reference itself produced."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import losses
from sagan_tf.networks import model_state
from sagan_tf.runs import reference_checkpoint
from sagan_tf.training import Trainer

GOLDEN = os.path.join(os.path.dirname(__file__), "golden")


class Reference:
    """A golden file: its arrays, and a trainer that holds its initial or final variables."""

    def __init__(self, name: str, fused: str):
        self.arrays = dict(np.load(os.path.join(GOLDEN, f"{name}.npz")))
        self.meta = json.loads(str(self.arrays["meta"]))
        shapes = {key: value.shape for key, value in self.variables("init").items()}
        self.config = reference_checkpoint.infer_config(
            shapes, batch_size=self.meta["batch"], loss_type=self.meta["loss"], fused_resampling=fused
        )
        self.trainer = Trainer(self.config)
        self.tensors = {key: tf.constant(a) for key, a in self.arrays.items() if key.startswith(("forward/", "trained/"))}

    def variables(self, prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{prefix}/"): value for key, value in self.arrays.items() if key.startswith(f"{prefix}/model/")}

    def load(self, prefix: str) -> None:
        """Sets every variable of both networks, and resets the optimisers."""
        values = reference_checkpoint.to_state(self.variables(prefix))
        networks = model_state("generator", self.trainer.generator) | model_state("discriminator", self.trainer.discriminator)
        assert set(values) == set(networks)
        for name, variable in networks.items():
            assert tuple(variable.shape) == values[name].shape, name
            variable.assign(values[name])
        for optimizer in (self.trainer.generator_optimizer, self.trainer.discriminator_optimizer):
            for variable in optimizer.variables:
                if "learning_rate" not in variable.path:
                    variable.assign(np.zeros(variable.shape, variable.dtype))

    def state(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.trainer.state().items()}


@pytest.fixture(scope="module", params=["sagan-never", "sagan-auto", "sagan-always", "baseline-never", "baseline-always"])
def reference(request):
    return Reference(*request.param.split("-"))


def relative(actual, expected):
    """The largest difference, as a part of the largest expected value."""
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


class ForwardTest:
    def test_evaluation_matches_reference(self, reference):
        reference.load("init")
        a, trainer = reference.tensors, reference.trainer
        before = reference.state()
        images = trainer.generator([a["forward/z"], a["forward/fake_labels"]], training=False)
        logits = trainer.discriminator([a["forward/real_images"], a["forward/real_labels"]], training=False)
        assert relative(images, a["forward/generated_eval"]) < 5e-6
        assert relative(logits, a["forward/logits_real"]) < 5e-6
        for name, value in reference.state().items():
            np.testing.assert_array_equal(value, before[name], err_msg=f"{name} changed in inference")

    def test_training_mode_matches_reference(self, reference):
        reference.load("init")
        a, trainer = reference.tensors, reference.trainer
        images = trainer.generator([a["forward/z"], a["forward/fake_labels"]], training=True)
        logits_fake = trainer.discriminator([images, a["forward/fake_labels"]], training=False)
        logits_real = trainer.discriminator([a["forward/real_images"], a["forward/real_labels"]], training=True)
        loss_real, loss_fake = losses.discriminator_loss(logits_real, logits_fake, reference.config.loss_type)
        assert relative(images, a["forward/generated_train"]) < 1e-4
        assert relative(logits_real, a["forward/logits_real"]) < 1e-4
        assert relative(logits_fake, a["forward/logits_fake"]) < 1e-4
        np.testing.assert_allclose(loss_real, a["forward/d_loss_real"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(loss_fake, a["forward/d_loss_fake"], rtol=1e-4)
        np.testing.assert_allclose(losses.generator_loss(logits_fake), a["forward/g_loss"], rtol=1e-4)


class GradientTest:
    def compare(self, model, gradients, expected, network):
        expected = reference_checkpoint.to_state({f"model/{key}": value for key, value in expected.items()})
        norm = np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in expected.values()))
        assert len(expected) == len(gradients)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            value = expected[f"{network}/{variable.path}"]
            difference = np.max(np.abs(tf.convert_to_tensor(gradient) - value))
            assert difference < 1e-3 * np.max(np.abs(value)) + 1e-4 * norm, variable.path

    def expected(self, reference, letter):
        prefix = f"grad/{letter}/model/"
        return {key.removeprefix(prefix): value for key, value in reference.arrays.items() if key.startswith(prefix)}

    def test_generator_gradients_match_reference(self, reference):
        reference.load("init")
        a, trainer = reference.tensors, reference.trainer
        with tf.GradientTape() as tape:
            images = trainer.generator([a["forward/z"], a["forward/fake_labels"]], training=True)
            logits = trainer.discriminator([images, a["forward/fake_labels"]], training=False)
            loss = losses.generator_loss(logits)
        gradients = tape.gradient(loss, trainer.generator.trainable_variables)
        self.compare(trainer.generator, gradients, self.expected(reference, "g"), "generator")

    def test_discriminator_gradients_match_reference(self, reference):
        reference.load("init")
        a, trainer = reference.tensors, reference.trainer
        images = trainer.generator([a["forward/z"], a["forward/fake_labels"]], training=True)
        with tf.GradientTape() as tape:
            logits_fake = trainer.discriminator([images, a["forward/fake_labels"]], training=False)
            logits_real = trainer.discriminator([a["forward/real_images"], a["forward/real_labels"]], training=True)
            loss = sum(losses.discriminator_loss(logits_real, logits_fake, reference.config.loss_type))
        gradients = tape.gradient(loss, trainer.discriminator.trainable_variables)
        self.compare(trainer.discriminator, gradients, self.expected(reference, "d"), "discriminator")


class TrajectoryTest:
    def test_updates_follow_reference(self, reference):
        reference.load("init")
        a, trainer = reference.arrays, reference.trainer
        update_generator, update_discriminator = (
            tf.function(trainer.update_generator),
            tf.function(trainer.update_discriminator),
        )
        for step in range(reference.meta["steps"]):
            g, d = f"step{step}/g", f"step{step}/d"
            metrics = update_generator(a[f"{g}/z"], a[f"{g}/labels"])
            np.testing.assert_allclose(metrics["generator_loss"], a[f"step{step}/g_loss"], rtol=1e-4)
            metrics = update_discriminator(a[f"{d}/real_images"], a[f"{d}/real_labels"], a[f"{d}/z"], a[f"{d}/labels"])
            loss = metrics["discriminator_loss_real"] + metrics["discriminator_loss_fake"]
            np.testing.assert_allclose(loss, a[f"step{step}/d_loss"], rtol=1e-4)

        final, state = reference_checkpoint.to_state(reference.variables("final")), reference.state()
        compared = [name for name in final if name.endswith(("/u", "/moving_mean", "/moving_variance"))]
        assert len(compared) > 50
        for name in compared:
            np.testing.assert_allclose(state[name], final[name], atol=1e-3 * np.max(np.abs(final[name])), err_msg=name)
        a = reference.tensors
        images = trainer.generator([a["trained/z"], a["trained/labels"]], training=False)
        assert np.max(np.abs(images - a["trained/generated_eval"])) < 2e-2

    def test_outputs_on_final_weights_match_reference(self, reference):
        reference.load("final")
        a, trainer = reference.tensors, reference.trainer
        images = trainer.generator([a["trained/z"], a["trained/labels"]], training=False)
        logits = trainer.discriminator([a["trained/images"], a["trained/image_labels"]], training=False)
        assert relative(images, a["trained/generated_eval"]) < 5e-6
        assert relative(logits, a["trained/logits"]) < 5e-6
