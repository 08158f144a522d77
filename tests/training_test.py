"""The trainer: accumulation, schedules, averages, precision, and what happens at a NaN."""

import numpy as np
import pytest
import tensorflow as tf
from augmentation_test import ALL, expected

from sagan_tf import augmentation, data, losses
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs.loop import train
from sagan_tf.runs.run import load_run
from sagan_tf.training import METRICS, Trainer


def small(**settings):
    defaults = {
        "image_size": 32,
        "gf_dim": 2,
        "df_dim": 2,
        "z_dim": 4,
        "num_classes": 6,
        "attention_resolution": 8,
        "batch_size": 8,
    }
    return Config(**{**defaults, **settings})


def batches(trainer):
    return data.train_iterator(data.open_source(trainer.config), trainer.config, trainer.strategy, int(trainer.step))


def steps(trainer, count):
    iterator = batches(trainer)
    return trainer.train(iterator, tf.constant(count))[0].numpy()


def inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (config.batch_size, 32, 32, 3)).astype(np.float32)
    z, other = rng.standard_normal((2, config.batch_size, config.z_dim)).astype(np.float32)
    labels = rng.integers(0, config.num_classes, config.batch_size).astype(np.int32)
    return [tf.constant(x) for x in (images, labels, z, other)]


def slots(optimizer):
    """The optimizer's first moments: with beta1 = 0, the gradients of the last update."""
    return {v.path: v.numpy() for v in optimizer.variables if v.path.endswith("_momentum")}


class AccumulationTest:
    def test_gradient_is_the_mean_over_the_parts_each_with_its_own_batch_norm(self):
        whole = Trainer(small(accumulation_steps=2))
        images, labels, z, _ = inputs(whole.config)
        whole.update_discriminator(images, labels, z, labels)
        whole.update_generator(z, labels)
        halves = []
        for part in (slice(0, 4), slice(4, 8)):
            half = Trainer(small(batch_size=4))
            # State that the first part has moved by the time the second is computed: u, and nothing else that matters.
            if halves:
                half.generator([z[:4], labels[:4]], training=True)
                half.discriminator([images[:4], labels[:4]], training=True)
            half.update_discriminator(images[part], labels[part], z[part], labels[part])
            halves.append(slots(half.discriminator_optimizer))
        for name, value in slots(whole.discriminator_optimizer).items():
            mean = (halves[0][name] + halves[1][name]) / 2
            np.testing.assert_allclose(value, mean, rtol=1e-3, atol=1e-4 * max(np.abs(mean).max(), 1e-3), err_msg=name)

    def test_one_update_is_made_and_averages_move_with_every_part(self):
        trainer = Trainer(small(accumulation_steps=4, generator_spectral_norm=False))
        _, labels, z, _ = inputs(trainer.config)
        kernel = trainer.generator.get_layer("dense").kernel.numpy()
        expected = np.zeros(8)
        for part in np.split(z.numpy(), 4):
            expected = 0.999 * expected + 0.001 * (part @ kernel).reshape(2, 4, 4, 8).mean((0, 1, 2))
        trainer.update_generator(z, labels)
        assert int(trainer.generator_optimizer.iterations) == 1
        np.testing.assert_allclose(trainer.generator.get_layer("block_1").cbn_1.moving_mean, expected, rtol=1e-4, atol=1e-8)


# G's spectral norm would move u between the parts of a batch.
AUGMENTED = {"augment": ALL, "generator_spectral_norm": False}


class AugmentationTest:
    """Both updates, against networks of the same weights that get images augmented in NumPy."""

    def draws(self, config):
        return np.random.default_rng(5).random((config.batch_size, 2, augmentation.DRAWS), np.float32)

    def logits(self, trainer, images, labels, draws, training):
        return trainer.discriminator([tf.constant(expected(images, draws, ALL), tf.float32), labels], training=training)

    def test_graph_need_not_know_the_number_of_images(self):
        """As where several processes train."""
        images, draws = (
            np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)),
            np.random.default_rng(1).random((3, augmentation.DRAWS)),
        )
        signature = [tf.TensorSpec([None, 16, 16, 3]), tf.TensorSpec(draws.shape)]
        found = tf.function(lambda *values: augmentation.augment(*values, ALL), signature)(*map(np.float32, (images, draws)))
        np.testing.assert_allclose(found, expected(np.float32(images), np.float32(draws), ALL), rtol=0, atol=2e-6)

    def test_generator_learns_from_augmented_images(self):
        trainer, other = Trainer(small(**AUGMENTED)), Trainer(small(**AUGMENTED))
        _, labels, z, _ = inputs(trainer.config)
        draws = self.draws(trainer.config)
        metrics = trainer.update_generator(z, labels, tf.constant(draws))
        fakes = other.generator([z, labels], training=True)
        loss = losses.generator_loss(self.logits(other, fakes, labels, draws[:, 1], training=False))
        np.testing.assert_allclose(metrics["generator_loss"], loss, rtol=1e-4, atol=1e-6)
        # The gradient's part along a direction of the last kernel: the loss's slope at the augmented images, times how these move.
        seen = tf.constant(expected(fakes, draws[:, 1], ALL), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(seen)
            loss = losses.generator_loss(other.discriminator([seen, labels], training=False))
        slope = np.float64(tape.gradient(loss, seen))
        kernel = other.generator.get_layer("conv").kernel
        gradient = slots(trainer.generator_optimizer)["generator_adam/conv_kernel_momentum"]
        before, step, moved = kernel.numpy(), 0.01 * gradient / np.linalg.norm(gradient), []
        for way in (step, -step):
            kernel.assign(before + way)
            moved.append(expected(other.generator([z, labels], training=True), draws[:, 1], ALL))
        np.testing.assert_allclose(np.sum(slope * (moved[0] - moved[1])) / 0.02, np.linalg.norm(gradient), rtol=1e-3)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_discriminator_sees_real_and_generated_images_by_draws_of_their_own(self, parts):
        settings = {**AUGMENTED, "accumulation_steps": parts}
        trainer, other = Trainer(small(**settings)), Trainer(small(**settings))
        images, labels, z, _ = inputs(trainer.config)
        draws = self.draws(trainer.config)
        metrics = trainer.update_discriminator(images, labels, z, labels, tf.constant(draws))
        found = []
        for part in np.split(np.arange(trainer.config.batch_size), parts):
            of_part = [tf.gather(value, part) for value in (images, labels, z)]
            fakes = other.generator([of_part[2], of_part[1]], training=True)
            logits_fake = self.logits(other, fakes, of_part[1], draws[part, 1], training=False)
            logits_real = self.logits(other, of_part[0], of_part[1], draws[part, 0], training=True)
            found.append([*losses.discriminator_loss(logits_real, logits_fake), *map(tf.reduce_mean, (logits_real, logits_fake))])
        names = ("discriminator_loss_real", "discriminator_loss_fake", "logits_real", "logits_fake")
        np.testing.assert_allclose([metrics[name] for name in names], np.mean(found, axis=0), rtol=1e-3, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:Even though")  # The datasets stay graphs.
    def test_every_update_of_a_run_has_its_draws(self, monkeypatch):
        trainer, found = Trainer(small(augment=ALL, d_step=2)), []

        def update(_, *inputs):
            found.append(inputs[-3:])
            return dict.fromkeys(METRICS[:-2], 0.0)

        for name in ("update_generator", "update_discriminator"):
            monkeypatch.setattr(Trainer, name, update)
        tf.config.run_functions_eagerly(True)
        try:
            steps(trainer, 2)
        finally:
            tf.config.run_functions_eagerly(False)
        moments = [(tf.constant(step, tf.int64), number) for step in range(2) for number in range(3)]
        for inputs, moment in zip(found, moments, strict=True):
            for value, wanted in zip(inputs, (*trainer.noise(*moment), trainer.augmentation_draws(*moment)), strict=True):
                np.testing.assert_array_equal(value, wanted)


class ScheduleTest:
    def test_updates_per_step(self):
        trainer = Trainer(small(g_step=1, d_step=2))
        steps(trainer, 2)
        assert int(trainer.step) == 2
        assert int(trainer.generator_optimizer.iterations) == 2
        assert int(trainer.discriminator_optimizer.iterations) == 4

    def test_average_follows_by_its_decay(self):
        trainer = Trainer(small(ema_decay=0.75))
        expected = {v.path: v.numpy() for v in trainer.ema_generator.variables}
        for _ in range(2):
            steps(trainer, 1)
            for variable in trainer.generator.variables:
                keep = 0.0 if variable.name == "u" else 0.75
                expected[variable.path] = keep * expected[variable.path] + (1 - keep) * variable.numpy()
        for variable in trainer.ema_generator.variables:
            np.testing.assert_allclose(variable, expected[variable.path], rtol=1e-5, atol=1e-7, err_msg=variable.path)

    def test_steps_do_not_retrace(self):
        trainer = Trainer(small())
        iterator = batches(trainer)
        trainer.train(iterator, tf.constant(1))
        traces = trainer.train.experimental_get_tracing_count()
        for count in (1, 2, 3):
            assert len(trainer.train(iterator, tf.constant(count))[0]) == count
        assert trainer.train.experimental_get_tracing_count() == traces


class SpeedOptionTest:
    """Augmented, since that is part of the step."""

    @pytest.fixture(scope="class")
    def float32(self):
        return steps(Trainer(small(augment=ALL)), 4)

    def losses(self, metrics):
        return metrics[:, [METRICS.index(name) for name in METRICS if "loss" in name]]

    def test_compiled_step_computes_the_same(self, float32):
        np.testing.assert_allclose(
            self.losses(steps(Trainer(small(augment=ALL, jit_compile=True)), 4)), self.losses(float32), rtol=1e-3, atol=1e-4
        )

    def test_bfloat16_tracks_float32(self, float32):
        trainer = Trainer(small(augment=ALL, mixed_precision="bfloat16"))
        np.testing.assert_allclose(self.losses(steps(trainer, 4)), self.losses(float32), rtol=0.05, atol=0.1)

    def test_float16_tracks_float32_once_its_loss_scale_is_found(self, float32):
        trainer = Trainer(small(augment=ALL, mixed_precision="float16"))
        trainer.generator_optimizer.dynamic_scale.assign(1024.0)
        trainer.discriminator_optimizer.dynamic_scale.assign(1024.0)
        np.testing.assert_allclose(self.losses(steps(trainer, 4)), self.losses(float32), rtol=0.05, atol=0.1)
        for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
            assert int(optimizer.inner_optimizer.iterations) == 4


class NotFiniteTest:
    def poisoned(self, tmp_path, name, **settings):
        """A run of five steps; after the third, the variable of this name is NaN, once."""
        config = small(model_dir=str(tmp_path), train_steps=5, save_checkpoint_steps=1, steps_per_loop=1, **settings)
        original, calls = Trainer.train, []

        def poisoning(trainer, iterator, count):
            calls.append(int(trainer.step))
            if calls.count(3) == 1 and calls[-1] == 3:
                variable = trainer.state()[name]
                variable.assign(variable * np.nan)
            return original(trainer, iterator, count)

        return config, poisoning

    @pytest.mark.parametrize(
        ("name", "culprit"),
        [
            ("discriminator/logits/dense/bias", "generator_loss is nan"),
            # Before a ReLU, which on some CPUs turns NaN into 0, so that losses and gradients stay finite.
            ("discriminator/block_2/conv_1/bias", "(in discriminator/block_2/conv_1/bias|generator_loss is nan)"),
            # Not read in training at all.
            ("generator/batch_norm/moving_mean", "in generator/batch_norm/moving_mean"),
        ],
    )
    def test_stop_names_step_and_culprit_and_keeps_the_last_good_checkpoint(self, tmp_path, monkeypatch, name, culprit):
        config, poisoning = self.poisoned(tmp_path, name)
        monkeypatch.setattr(Trainer, "train", poisoning)
        with pytest.raises(UserError, match=rf"Step 4 is not finite: .*{culprit}.* checkpoint of step 3 is the last good"):
            train(config)
        assert load_run(str(tmp_path)).steps[-1] == 3

    def test_rollbacks_come_to_an_end(self, tmp_path, monkeypatch):
        config, poisoning = self.poisoned(tmp_path, "discriminator/logits/dense/bias", on_nan="rollback", max_rollbacks=0)
        monkeypatch.setattr(Trainer, "train", poisoning)
        with pytest.raises(UserError, match="resume with --max_rollbacks above 0"):
            train(config)

    def test_rollback_goes_on_from_the_last_checkpoint(self, tmp_path, monkeypatch):
        config, poisoning = self.poisoned(tmp_path, "discriminator/logits/dense/bias", on_nan="rollback")
        monkeypatch.setattr(Trainer, "train", poisoning)
        reader = tf.train.load_checkpoint(train(config).checkpoints.path(5))
        assert reader.get_tensor("rollbacks") == 1
        assert all(np.isfinite(reader.get_tensor(name)).all() for name in reader.get_variable_to_shape_map())
