"""The layers against NumPy in float64; these tests run on every Keras backend."""

import inspect
import re

import keras
import numpy as np
import pytest
from keras import ops

from sagan_tf import layers

RNG = np.random.default_rng(0)


def array(layer_or_tensor):
    return ops.convert_to_numpy(layer_or_tensor)


def randomize(layer, seed=0):
    """Gives every variable of a built layer a random value (variances positive)."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        value = rng.standard_normal(variable.shape)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)


def values(layer):
    return {variable.path: array(variable).astype(np.float64) for variable in layer.variables}


def l2(x, epsilon=1e-12):
    return x / (np.sqrt((x**2).sum()) + epsilon)


def normalized(matrix, u):
    """One power iteration on `[K, C]`, as the specification states it: the matrix over sigma, and the next u."""
    v = l2(u @ matrix.T)
    u = l2(v @ matrix)
    return matrix / (v @ matrix @ u.T).item(), u


def conv(images, kernel):
    """Zero-padded convolution with a `[k, k, in, out]` kernel, by summing shifted products."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = images.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(size) for j in range(size))


class SpectralNormTest:
    @pytest.mark.parametrize("kernel_size", [1, 3])
    def test_convolution_divides_kernel_by_sigma(self, kernel_size):
        layer = layers.SNConv2D(5, kernel_size)
        images = RNG.standard_normal((2, 6, 6, 4)).astype(np.float32)
        layer.build(images.shape)
        randomize(layer)
        w = values(layer)
        path = layer.name
        kernel, _ = normalized(w[f"{path}/kernel"].reshape(-1, 5), w[f"{path}/u"])
        expected = conv(images.astype(np.float64), kernel.reshape(kernel_size, kernel_size, 4, 5)) + w[f"{path}/bias"]
        np.testing.assert_allclose(array(layer(images)), expected, rtol=1e-4, atol=1e-5)

    def test_dense_divides_kernel_by_sigma(self):
        layer = layers.SNDense(7)
        x = RNG.standard_normal((3, 4)).astype(np.float32)
        layer.build(x.shape)
        randomize(layer)
        w = values(layer)
        kernel, _ = normalized(w[f"{layer.name}/kernel"], w[f"{layer.name}/u"])
        np.testing.assert_allclose(array(layer(x)), x @ kernel + w[f"{layer.name}/bias"], rtol=1e-4, atol=1e-5)

    def test_embedding_is_normalized_on_its_transpose(self):
        layer = layers.SNEmbedding(6, 4)
        layer.build((None,))
        randomize(layer)
        w = values(layer)
        assert layer.u.shape == (1, 6)
        table, _ = normalized(w[f"{layer.name}/embeddings"].T, w[f"{layer.name}/u"])
        labels = np.array([0, 5, 2], np.int32)
        np.testing.assert_allclose(array(layer(labels)), table.T[labels], rtol=1e-4, atol=1e-6)

    def test_sigma_converges_to_largest_singular_value(self):
        layer = layers.SNConv2D(8, 3)
        layer.build((None, 4, 4, 8))
        for _ in range(300):
            layer.normalized_weight(training=True)
        kernel = array(layer.kernel).reshape(-1, 8)
        largest = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)[0]
        np.testing.assert_allclose(array(layer.normalized_weight()).reshape(-1, 8), kernel / largest, rtol=1e-4)

    def test_only_training_stores_u(self):
        layer = layers.SNDense(3)
        layer.build((None, 4))
        before = array(layer.u).copy()
        x = np.ones((2, 4), np.float32)
        layer(x, training=False)
        np.testing.assert_array_equal(array(layer.u), before)
        _, expected = normalized(array(layer.kernel).astype(np.float64), before.astype(np.float64))
        layer(x, training=True)
        np.testing.assert_allclose(array(layer.u), expected, rtol=1e-5, atol=1e-6)

    def test_without_normalization_kernel_is_used_as_it_is(self):
        layer = layers.SNDense(3, spectral_norm=False)
        layer.build((None, 4))
        assert not layer.non_trainable_variables
        x = RNG.standard_normal((2, 4)).astype(np.float32)
        np.testing.assert_allclose(array(layer(x)), x @ array(layer.kernel), rtol=1e-5)

    @pytest.mark.parametrize("through", [True, False])
    def test_gradient_through_power_iteration(self, through):
        """The gradient of sum(c * W / sigma(W)) against central differences in float64."""
        layer = layers.SNDense(3, spectral_norm_gradient=through)
        layer.build((None, 4))
        randomize(layer, seed=1)
        matrix, u = array(layer.kernel).astype(np.float64), array(layer.u).astype(np.float64)
        c = np.random.default_rng(2).standard_normal(matrix.shape)
        v = l2(u @ matrix.T)
        u_next = l2(v @ matrix)

        def function(w):
            if through:
                return np.sum(c * normalized(w, u)[0])
            return np.sum(c * w / (v @ w @ u_next.T).item())

        actual = array(layer.normalized_weight())  # The same forward pass, whatever the gradient.
        np.testing.assert_allclose(actual, normalized(matrix, u)[0], rtol=1e-5)

        expected = np.zeros_like(matrix)
        for index in np.ndindex(matrix.shape):
            step = np.zeros_like(matrix)
            step[index] = 1e-6
            expected[index] = (function(matrix + step) - function(matrix - step)) / 2e-6

        actual = gradient(lambda: ops.sum(c.astype(np.float32) * layer.normalized_weight()), layer.kernel)
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def gradient(function, variable):
    """Returns the gradient of a function of no arguments with respect to a Keras variable."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        return tape.gradient(value, variable.value).numpy()
    import jax

    def stateless(value):
        with keras.StatelessScope(state_mapping=[(variable, value)]):
            return function()

    return np.asarray(jax.grad(stateless)(variable.value))


class BatchNormalizationTest:
    def oracle(self, x, gamma, beta, mean, variance):
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def test_training_uses_batch_moments_of_each_class_table(self):
        layer = layers.ConditionalBatchNormalization(3)
        x = RNG.standard_normal((4, 5, 5, 2)).astype(np.float32) * 3 + 1
        labels = np.array([2, 0, 1, 2], np.int32)
        layer.build([x.shape, labels.shape])
        randomize(layer)
        w = values(layer)
        name = layer.name
        mean, variance = x.mean((0, 1, 2), dtype=np.float64), x.var((0, 1, 2), dtype=np.float64)
        gamma, beta = (w[f"{name}/{k}"][labels][:, None, None, :] for k in ("gamma", "beta"))
        outputs = layer([ops.convert_to_tensor(x), ops.convert_to_tensor(labels)], training=True)
        np.testing.assert_allclose(array(outputs), self.oracle(x, gamma, beta, mean, variance), rtol=1e-4, atol=1e-4)
        for key, value in (("moving_mean", mean), ("moving_variance", variance)):
            expected = 0.999 * w[f"{name}/{key}"] + 0.001 * value
            np.testing.assert_allclose(array(getattr(layer, key)), expected, rtol=1e-5)

    def test_evaluation_uses_moving_averages_and_changes_nothing(self):
        layer = layers.ConditionalBatchNormalization(3)
        x = RNG.standard_normal((2, 4, 4, 2)).astype(np.float32)
        labels = np.array([1, 2], np.int32)
        layer.build([x.shape, labels.shape])
        randomize(layer)
        w, name = values(layer), layer.name
        outputs = layer([ops.convert_to_tensor(x), ops.convert_to_tensor(labels)], training=False)
        gamma, beta = (w[f"{name}/{k}"][labels][:, None, None, :] for k in ("gamma", "beta"))
        expected = self.oracle(x, gamma, beta, w[f"{name}/moving_mean"], w[f"{name}/moving_variance"])
        np.testing.assert_allclose(array(outputs), expected, rtol=1e-4, atol=1e-5)
        for path, value in values(layer).items():
            np.testing.assert_array_equal(value, w[path])

    def test_unbiased_moving_variance(self):
        layer = layers.BatchNormalization(momentum=0.9, unbiased_moving_variance=True)
        x = RNG.standard_normal((2, 2, 2, 3)).astype(np.float32)
        layer.build(x.shape)
        layer(x, training=True)
        expected = 0.9 + 0.1 * x.reshape(-1, 3).var(0, ddof=1)
        np.testing.assert_allclose(array(layer.moving_variance), expected, rtol=1e-5)

    def test_unconditional_has_one_scale_per_channel(self):
        layer = layers.ConditionalBatchNormalization(0)
        layer.build([(None, 4, 4, 6), (None,)])
        assert layer.gamma.shape == (6,)


class SelfAttentionTest:
    def oracle(self, layer, x, pooling):
        w = {path.removeprefix(f"{layer.name}/"): value for path, value in values(layer).items()}
        kernels = {
            name: normalized(w[f"{name}/kernel"].reshape(-1, w[f"{name}/kernel"].shape[-1]), w[f"{name}/u"])[0]
            for name in ("theta", "phi", "g", "attn")
        }
        batch, height, width, _ = x.shape

        def keys(features):
            if pooling:
                features = features.reshape(batch, height // 2, 2, width // 2, 2, -1).max((2, 4))
            return features.reshape(batch, -1, features.shape[-1])

        theta = (x @ kernels["theta"]).reshape(batch, height * width, -1)
        phi, g = keys(x @ kernels["phi"]), keys(x @ kernels["g"])
        scores = np.einsum("bnc,bmc->bnm", theta, phi)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        attended = (attention @ g).reshape(batch, height, width, -1) @ kernels["attn"]
        return x + w["gamma"] * attended, attention

    @pytest.mark.parametrize("pooling", [True, False])
    @pytest.mark.parametrize("chunk_bytes", [2**25, 4 * 64 * 5])
    def test_matches_equation(self, pooling, chunk_bytes):
        layer = layers.SelfAttention(pooling=pooling, max_attention_bytes=chunk_bytes)
        x = RNG.standard_normal((2, 8, 8, 16)).astype(np.float32)
        layer.build(x.shape)
        randomize(layer, seed=3)
        expected, attention = self.oracle(layer, x.astype(np.float64), pooling)
        np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-4, atol=1e-4)
        outputs, maps = layer(x, return_attention=True)
        side = 4 if pooling else 8
        assert maps.shape == (2, 8, 8, side, side)
        np.testing.assert_allclose(array(outputs), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(array(maps).reshape(attention.shape), attention, rtol=1e-3, atol=1e-6)

    def test_chunks_have_the_gradient_of_the_whole(self):
        x = RNG.standard_normal((2, 8, 8, 16)).astype(np.float32)
        gradients = []
        for chunk_bytes in (2**25, 4 * 64 * 5):
            layer = layers.SelfAttention(max_attention_bytes=chunk_bytes, name="attention")
            layer.build(x.shape)
            randomize(layer, seed=4)
            gradients.append(gradient(lambda layer=layer: ops.sum(ops.square(layer(x))), layer.theta.kernel))
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * np.abs(gradients[0]).max())

    def test_zero_gamma_is_identity(self):
        layer = layers.SelfAttention()
        x = RNG.standard_normal((2, 4, 4, 8)).astype(np.float32)
        np.testing.assert_array_equal(array(layer(x)), x)
        assert float(array(layer.gamma)) == 0.0


class ResidualBlockTest:
    @pytest.mark.parametrize("channels", [64, 128, 256, 512])
    def test_has_as_many_weights_as_attention(self, channels):
        counts = []
        for layer in (layers.SelfAttention(), layers.ResidualBlock()):
            layer.build((None, 8, 8, channels))
            counts.append(sum(int(np.prod(v.shape)) for v in layer.trainable_variables))
        assert abs(counts[0] - counts[1]) < 0.13 * counts[0]


class SerializationTest:
    @pytest.mark.parametrize(
        "layer",
        [
            layers.SNConv2D(4, 1, "up", "never", False, spectral_norm=False, spectral_norm_epsilon=1e-8),
            layers.SNDense(3, spectral_norm_gradient=False),
            layers.SNEmbedding(5, 2),
            layers.BatchNormalization(0.5, 1e-3, True, True),
            layers.ConditionalBatchNormalization(7),
            layers.SelfAttention(False, {"spectral_norm_epsilon": 1e-8}, 1000),
            layers.ResidualBlock({"fused_resampling": "never"}),
        ],
    )
    def test_config_round_trip(self, layer):
        copy = type(layer).from_config(layer.get_config())
        assert copy.get_config() == layer.get_config()


class PrecisionTest:
    def test_spectral_norm_and_moments_stay_float32(self):
        conv_layer = layers.SNConv2D(4, 3, dtype="mixed_bfloat16")
        norm = layers.BatchNormalization(dtype="mixed_bfloat16")
        x = ops.cast(RNG.standard_normal((2, 4, 4, 4)), "bfloat16")
        outputs = norm(conv_layer(x, training=True), training=True)
        assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
        for variable in (*conv_layer.variables, *norm.variables):
            assert keras.backend.standardize_dtype(variable.dtype) == "float32"
        assert keras.backend.standardize_dtype(conv_layer.normalized_weight().dtype) == "float32"


class ExamplesTest:
    @pytest.mark.parametrize("name", ["SNConv2D", "SNDense", "SNEmbedding", "SelfAttention"])
    def test_runs_as_it_stands(self, name):
        (code,) = re.findall(r"```python\n(.*?)```", inspect.cleandoc(getattr(layers, name).__doc__), re.DOTALL)
        assert f"import {name}\n" in code
        exec(code, {})
