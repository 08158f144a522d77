"""The networks: the paper's sizes, positions and options."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from sagan_tf import networks
from sagan_tf.architecture import attention_places
from sagan_tf.config import Config
from sagan_tf.errors import UserError


def parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def small(**settings):
    defaults = {"image_size": 32, "gf_dim": 8, "df_dim": 8, "z_dim": 4, "num_classes": 3, "attention_resolution": 16}
    return Config(**{**defaults, **settings})


def numpy_inputs(config, batch=2):
    rng = np.random.default_rng(0)
    z = ops.convert_to_tensor(rng.standard_normal((batch, config.z_dim)).astype(np.float32))
    images = ops.convert_to_tensor(rng.uniform(-1, 1, (batch, config.image_size, config.image_size, 3)).astype(np.float32))
    labels = ops.convert_to_tensor(np.arange(batch, dtype=np.int32) % max(config.num_classes, 1))
    return z, images, labels


class ParameterCountTest:
    def test_reference_at_128(self):
        config = Config(num_classes=1000)
        assert parameters(networks.generator(config)) == 42_078_852
        assert parameters(networks.discriminator(config)) == 39_463_618

    @pytest.mark.parametrize(
        ("image_size", "attention", "generator_widths", "generator_at", "discriminator_widths", "discriminator_at"),
        # Channels after each block with ch = 64, and those of the attention layer: SNGAN's and BigGAN's progressions.
        [
            (32, 16, [256, 256, 256, 256], 256, [128, 128, 128, 128], 128),
            (64, 16, [1024, 512, 256, 128, 64], 256, [64, 128, 256, 512, 1024], 128),
            (256, 64, [1024, 1024, 512, 512, 256, 128, 64], 256, [64, 128, 256, 512, 512, 1024, 1024], 128),
        ],
    )
    def test_other_sizes(self, image_size, attention, generator_widths, generator_at, discriminator_widths, discriminator_at):
        config = Config(image_size=image_size, num_classes=10, attention_resolution=attention)

        def conv(inputs, outputs, size):
            return size * size * inputs * outputs + outputs

        def attention_layer(channels):
            return 2 * channels * channels // 8 + 2 * channels * channels // 2 + 1

        first, last = generator_widths[0], generator_widths[-1]
        expected = (128 + 1) * 16 * first + attention_layer(generator_at) + 2 * last + conv(last, 3, 3)
        for before, after in itertools.pairwise(generator_widths):
            norms = 2 * 10 * (before + after)
            expected += norms + conv(before, after, 3) + conv(after, after, 3) + conv(before, after, 1)
        assert parameters(networks.generator(config)) == expected

        last = discriminator_widths[-1]
        expected = attention_layer(discriminator_at) + last + 1 + 10 * last
        downs = {32: 2, 64: 4, 256: 6}[image_size]
        for number, (before, after) in enumerate(itertools.pairwise([3, *discriminator_widths])):
            expected += conv(before, after, 3) + conv(after, after, 3)
            expected += conv(before, after, 1) if number < downs or before != after else 0
        assert parameters(networks.discriminator(config)) == expected

    def test_baseline_differs_by_the_attention_layers(self):
        with_attention, without = small(), small(attention_resolution=0)
        for network, channels in ((networks.generator, 32), (networks.discriminator, 16)):
            difference = parameters(network(with_attention)) - parameters(network(without))
            assert difference == 2 * channels * (channels // 8) + 2 * channels * (channels // 2) + 1


class PositionTest:
    @pytest.mark.parametrize("image_size", [32, 64, 128, 256])
    def test_attention_stands_at_the_resolution_asked_for(self, image_size):
        for resolution in attention_places(image_size):
            config = small(image_size=image_size, attention_resolution=resolution, gf_dim=2, df_dim=2)
            for model in (networks.generator(config), networks.discriminator(config)):
                shapes = [layer.input.shape for layer in model.layers if layer.name == "attention"]
                assert [shape[1:3] for shape in shapes] == [(resolution, resolution)]

    def test_resolutions_that_one_network_lacks_are_refused(self):
        for image_size, resolution in ((32, 32), (64, 64), (128, 128), (32, 64)):
            with pytest.raises(UserError, match="attention_resolution"):
                small(image_size=image_size, attention_resolution=resolution)

    def test_residual_control_takes_the_place_of_attention(self):
        config = small(attention_block="residual")
        for model in (networks.generator(config), networks.discriminator(config)):
            assert "residual" in [layer.name for layer in model.layers]
            assert "attention" not in [layer.name for layer in model.layers]


class OptionTest:
    def test_unknown_number_of_classes_is_refused(self):
        for network in (networks.generator, networks.discriminator):
            with pytest.raises(UserError, match=r"num_classes=-1 .*give num_classes"):
                network(small(num_classes=-1))

    @pytest.mark.parametrize(("generator", "discriminator"), itertools.product([True, False], repeat=2))
    def test_spectral_norm_switches_by_network(self, generator, discriminator):
        config = small(generator_spectral_norm=generator, discriminator_spectral_norm=discriminator)
        assert bool(networks.spectral_norms(networks.generator(config))) == generator
        assert bool(networks.spectral_norms(networks.discriminator(config))) == discriminator

    def test_unconditional_networks_do_not_read_labels(self):
        config = small(num_classes=0)
        generator, discriminator = networks.generator(config), networks.discriminator(config)
        z, images, labels = numpy_inputs(config)
        np.testing.assert_array_equal(generator([z, labels]), generator([z, labels + 7]))
        np.testing.assert_array_equal(discriminator([images, labels]), discriminator([images, labels + 7]))

    def test_classes_change_the_output_once_trained(self):
        config = small()
        generator, discriminator = networks.generator(config), networks.discriminator(config)
        generator.get_layer("block_1").cbn_1.beta.assign(np.random.default_rng(0).standard_normal((3, 32)))
        z, images, labels = numpy_inputs(config)
        assert np.abs(generator([z, labels]) - generator([z, labels * 0 + 2])).max() > 1e-4
        assert np.abs(discriminator([images, labels]) - discriminator([images, labels * 0 + 2])).max() > 1e-6

    def test_outputs_have_range_shape_and_type(self):
        for precision in ("none", "bfloat16"):
            config = small(mixed_precision=precision)
            z, images, labels = numpy_inputs(config)
            generated = networks.generator(config)([z, labels])
            logits = networks.discriminator(config)([images, labels])
            assert generated.shape == (2, 32, 32, 3)
            assert logits.shape == (2, 1)
            assert keras.backend.standardize_dtype(generated.dtype) == keras.backend.standardize_dtype(logits.dtype) == "float32"
            assert np.abs(generated).max() <= 1.0


class InferenceTest:
    def test_changes_no_variable(self):
        config = small()
        z, images, labels = numpy_inputs(config)
        for model, first in ((networks.generator(config), z), (networks.discriminator(config), images)):
            before = [np.array(variable) for variable in model.variables]
            model([first, labels], training=False)
            for variable, value in zip(model.variables, before, strict=True):
                np.testing.assert_array_equal(np.array(variable), value, err_msg=variable.path)

    def test_training_changes_state_alone(self):
        config = small()
        z, images, labels = numpy_inputs(config)
        for model, first in ((networks.generator(config), z), (networks.discriminator(config), images)):
            before = {variable.path: np.array(variable) for variable in model.variables}
            model([first, labels], training=True)
            changed = {variable.path for variable in model.variables if (np.array(variable) != before[variable.path]).any()}
            # A u of one entry is always +-1 and need not change.
            state = {variable.path for variable in model.non_trainable_variables if variable.shape != (1, 1)}
            assert state <= changed | set() and changed <= {variable.path for variable in model.non_trainable_variables}


class FoldedGeneratorTest:
    @pytest.mark.parametrize("through", [True, False])
    def test_equals_the_normalized_one(self, through):
        config = small(spectral_norm_gradient=through)
        model = networks.generator(config)
        model.get_layer("attention").gamma.assign(0.7)
        folded = networks.folded_generator(model, config)
        z, _, labels = numpy_inputs(config)
        assert not [variable for variable in folded.variables if variable.name == "u"]
        np.testing.assert_allclose(folded([z, labels]), model([z, labels]), atol=2e-6)


class WithAttentionTest:
    def test_maps_are_distributions_and_outputs_unchanged(self):
        config = small()
        model = networks.generator(config)
        z, _, labels = numpy_inputs(config)
        images, attention = networks.with_attention(model)([z, labels])
        assert attention.shape == (2, 16, 16, 8, 8)
        np.testing.assert_allclose(np.array(attention).sum((3, 4)), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(images, model([z, labels]))

    def test_refuses_a_model_without_attention(self):
        with pytest.raises(UserError, match="no self-attention"):
            networks.with_attention(networks.generator(small(attention_resolution=0)))


class SerializationTest:
    def test_keras_files_round_trip(self, tmp_path):
        config = small()
        z, images, labels = numpy_inputs(config)
        for model, first in ((networks.generator(config), z), (networks.discriminator(config), images)):
            path = tmp_path / f"{model.name}.keras"
            model.save(path)
            np.testing.assert_array_equal(keras.saving.load_model(path)([first, labels]), model([first, labels]))
