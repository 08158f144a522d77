"""SAGAN's layers: spectral normalisation, (conditional) batch normalisation, self-attention.

Everything here is `keras.ops` alone, so the layers run on every Keras backend. One convention holds throughout:
`training=True` updates state (power-iteration vectors, moving averages) and uses batch statistics; `training=False`
changes nothing.
"""

from typing import Any

import keras
from keras import ops

from sagan_tf import resampling

__all__ = [
    "BatchNormalization",
    "ConditionalBatchNormalization",
    "ResidualBlock",
    "SNConv2D",
    "SNDense",
    "SNEmbedding",
    "SelfAttention",
    "power_iteration",
]

_serializable = keras.saving.register_keras_serializable(package="sagan_tf")


def _l2_normalize(x, epsilon):
    """Returns `x / (|x| + epsilon)`, the reference's form: epsilon is outside the root."""
    return x / (ops.sqrt(ops.sum(ops.square(x))) + epsilon)


def power_iteration(matrix: Any, u: Any, epsilon: float = 1e-12) -> tuple[Any, Any, Any]:
    """One step of the power iteration.

    Args:
      matrix: `[K, C]`.
      u: `[1, C]`, the current estimate of the leading right singular vector.
      epsilon: added to the norms.

    Returns:
      `sigma`, the estimated largest singular value (scalar), the next `u`, `[1, C]`, and `v`, `[1, K]`.
      All are differentiable with respect to `matrix`, as in the reference.
    """
    # u W^T, written so that W itself need not be transposed.
    v = _l2_normalize(ops.reshape(ops.matmul(matrix, ops.reshape(u, (-1, 1))), (1, -1)), epsilon)  # [1, K]
    projected = ops.matmul(v, matrix)  # [1, C]
    u = _l2_normalize(projected, epsilon)
    sigma = ops.sum(projected * u)
    return sigma, u, v


class _SpectralNormLayer(keras.layers.Layer):
    """A layer with one weight that is divided by its largest singular value; `SNConv2D` explains the arguments."""

    def __init__(self, spectral_norm=True, spectral_norm_gradient=True, spectral_norm_epsilon=1e-12, **kwargs):
        super().__init__(**kwargs)
        self.spectral_norm = spectral_norm
        self.spectral_norm_gradient = spectral_norm_gradient
        self.spectral_norm_epsilon = spectral_norm_epsilon

    def _add_normalized_weight(self, shape, u_size, name="kernel"):
        """Creates the weight (Glorot uniform) and its `u` (truncated normal), both float32."""
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", autocast=False, name=name)
        if self.spectral_norm:
            self.u = self.add_weight(
                shape=(1, u_size),
                initializer=keras.initializers.TruncatedNormal(stddev=1.0),
                trainable=False,
                autocast=False,
                # Every replica computes the same u from the same weight.
                aggregation="only_first_replica",
                name="u",
            )

    def _matrix(self, weight):
        """Returns the weight as the `[K, C]` matrix whose largest singular value is taken."""
        return ops.reshape(weight, (-1, weight.shape[-1]))

    def normalized_weight(self, training=False):
        """Returns weight / sigma in float32; stores the next `u` if `training`."""
        weight = ops.convert_to_tensor(self.kernel)
        if not self.spectral_norm:
            return weight
        matrix = self._matrix(weight if self.spectral_norm_gradient else ops.stop_gradient(weight))
        sigma, u, v = power_iteration(matrix, ops.convert_to_tensor(self.u), self.spectral_norm_epsilon)
        if not self.spectral_norm_gradient:
            # The same sigma = v W u', where v and u' are constants: the gradient of Miyato et al.
            sigma = ops.sum(ops.matmul(v, self._matrix(weight)) * u)
        if training:
            self.u.assign(ops.stop_gradient(u))
        return weight * (1.0 / sigma)  # A quotient's gradient would pass over the weight five times, a product's two.

    def get_config(self):
        names = ("spectral_norm", "spectral_norm_gradient", "spectral_norm_epsilon")
        return super().get_config() | {name: getattr(self, name) for name in names}


@_serializable
class SNConv2D(_SpectralNormLayer):
    """Convolution with a spectrally normalised kernel, stride 1, zero padding.

    `y = conv(x, w / sigma(w)) + b`, with `w [k, k, in, filters]` read as the matrix `[k * k * in, filters]` and
    `u [1, filters]`. Input `[B, H, W, in]`, output `[B, H, W, filters]`; twice or half the height and width with
    `resample`.

    `keras.layers.SpectralNormalization` computes something else. There, each call with `training=True` writes
    kernel / sigma over the kernel and moves u, so a second pass divides again. A call with `training=False`
    normalises nothing, and in TensorFlow no gradient passes through sigma. Here every call divides by sigma, the kernel
    stays as the optimizer left it, and gradients pass through the power iteration. Only `training=True` moves u, so
    that a pass over real images and one over generated images can share it, as in the reference.

    ```python
    import keras
    from sagan_tf.layers import SNConv2D

    layer = SNConv2D(8, kernel_size=3, resample="down")
    real, generated = keras.random.normal((2, 4, 32, 32, 3))
    assert layer(real, training=True).shape == (4, 16, 16, 8)  # Moves u.
    assert layer(generated, training=False).shape == (4, 16, 16, 8)  # Leaves it.
    ```

    Args:
      filters: output channels.
      kernel_size: 1 or 3.
      resample: "up" for a nearest-neighbour x2 before the convolution, "down" for a 2x2 average pool after it, or None.
      fused_resampling: auto, always or never compute resampling and convolution as one.
      use_bias: adds a bias, initialised to zero.
      **kwargs: `name`, `dtype`, and what all layers with spectral norm take: `spectral_norm` (False: none, and no u),
        `spectral_norm_gradient` (False stops gradients through the power iteration; True is the reference) and
        `spectral_norm_epsilon` (added to the norms of the power iteration).

    Reference: paper section 4.1; Miyato et al., arXiv 1802.05957.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        resample: str | None = None,
        fused_resampling: str = "auto",
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if resample not in (None, "up", "down"):
            raise ValueError(f"resample must be None, 'up' or 'down', not {resample!r}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.resample = resample
        self.fused_resampling = fused_resampling
        self.use_bias = use_bias

    def build(self, input_shape):
        self._add_normalized_weight((self.kernel_size, self.kernel_size, input_shape[-1], self.filters), self.filters)
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, inputs, training=False):
        kernel = ops.cast(self.normalized_weight(training), self.compute_dtype)
        if self.resample == "up":
            outputs = resampling.upsample_conv(inputs, kernel, self.fused_resampling)
        elif self.resample == "down":
            outputs = resampling.conv_average_pool(inputs, kernel, self.fused_resampling)
        else:
            outputs = ops.conv(inputs, kernel, padding="same", data_format="channels_last")
        return outputs + self.bias if self.use_bias else outputs

    def get_config(self):
        names = ("filters", "kernel_size", "resample", "fused_resampling", "use_bias")
        return super().get_config() | {name: getattr(self, name) for name in names}


@_serializable
class SNDense(_SpectralNormLayer):
    """Dense layer with a spectrally normalised kernel: `y = x w / sigma(w) + b`.

    Input `[B, in]`, output `[B, units]`, `w [in, units]`, `u [1, units]`.

    ```python
    import keras
    from sagan_tf.layers import SNDense

    critic = keras.Sequential([SNDense(64), keras.layers.ReLU(), SNDense(1)])
    logits = critic(keras.random.normal((4, 16)), training=True)
    assert logits.shape == (4, 1)
    ```

    Args:
      units: output dimensions.
      **kwargs: those of `SNConv2D`.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self._add_normalized_weight((input_shape[-1], self.units), self.units)
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs, training=False):
        kernel = ops.cast(self.normalized_weight(training), self.compute_dtype)
        return ops.matmul(inputs, kernel) + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@_serializable
class SNEmbedding(_SpectralNormLayer):
    """Embedding with a spectrally normalised table.

    Input integer labels `[B]`, output `[B, units]`. The table is `[num_classes, units]`; it is normalised on its
    transpose, as in the reference, so `u` is `[1, num_classes]`.

    ```python
    import numpy as np
    from sagan_tf.layers import SNEmbedding

    embedding = SNEmbedding(num_classes=10, units=32)
    assert embedding(np.array([3, 7], "int32")).shape == (2, 32)
    ```

    Args:
      num_classes: rows of the table.
      units: output dimensions.
      **kwargs: those of `SNConv2D`.
    """

    def __init__(self, num_classes: int, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.units = units

    def build(self, input_shape):
        self._add_normalized_weight((self.num_classes, self.units), self.num_classes, name="embeddings")

    def _matrix(self, weight):
        return ops.transpose(weight)

    def call(self, labels, training=False):
        table = ops.cast(self.normalized_weight(training), self.compute_dtype)
        return ops.take(table, labels, axis=0)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "units": self.units}


@_serializable
class BatchNormalization(keras.layers.Layer):
    """Batch normalisation over N, H and W whose moving averages are right on several replicas.

    Keras' own layer keeps one moving average per replica and saves the first; here they are averaged over the replicas
    at every update. Moments are computed in float32.

    Args:
      momentum: decay of the moving averages.
      epsilon: added to the variance.
      unbiased_moving_variance: moves the average towards the unbiased batch variance, as the
        fused kernel does that the reference's last batch norm uses.
      synchronized: takes the moments over all replicas instead of each by itself.
      **kwargs: `name` and `dtype`.
    """

    def __init__(
        self,
        momentum: float = 0.999,
        epsilon: float = 1e-5,
        unbiased_moving_variance: bool = False,
        synchronized: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.unbiased_moving_variance = unbiased_moving_variance
        self.synchronized = synchronized

    def build(self, input_shape):
        channels = input_shape[-1]
        self._add_scale_and_offset(channels)
        for name, initial in (("moving_mean", "zeros"), ("moving_variance", "ones")):
            variable = self.add_weight(
                shape=(channels,), initializer=initial, trainable=False, autocast=False, aggregation="mean", name=name
            )
            setattr(self, name, variable)

    def _add_scale_and_offset(self, channels):
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", autocast=False, name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", autocast=False, name="beta")

    def call(self, inputs, training=False):
        return self._normalize(inputs, ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta), training)

    def _normalize(self, inputs, gamma, beta, training):
        """Normalises `[B, H, W, C]`; gamma and beta are `[C]` or `[B, 1, 1, C]`."""
        x = ops.cast(inputs, "float32")
        if training:
            mean, variance = ops.moments(x, axes=(0, 1, 2), synchronized=self.synchronized)
            self._update(mean, variance, ops.cast(ops.size(x) // x.shape[-1], "float32"))
        else:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        return ops.cast(x * scale + (beta - mean * scale), self.compute_dtype)

    def _update(self, mean, variance, count):
        if self.unbiased_moving_variance:
            variance = variance * (count / ops.maximum(count - 1.0, 1.0))
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moved = average * self.momentum + ops.stop_gradient(value) * (1.0 - self.momentum)
            average.assign(moved)

    def get_config(self):
        names = ("momentum", "epsilon", "unbiased_moving_variance", "synchronized")
        return super().get_config() | {name: getattr(self, name) for name in names}


@_serializable
class ConditionalBatchNormalization(BatchNormalization):
    """Batch normalisation with a scale and an offset for each class.

    Call with `[inputs [B, H, W, C], labels [B]]`. gamma is `[num_classes, C]`, initialised to ones, beta to zeros;
    moments are shared by all classes. With `num_classes=0` it is plain batch normalisation and the labels are not read.

    Args:
      num_classes: rows of gamma and beta.
      **kwargs: those of `BatchNormalization`.

    Reference: Dumoulin et al., arXiv 1610.07629; the reference's decay of 0.999.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def build(self, input_shape):
        super().build(input_shape[0])

    def _add_scale_and_offset(self, channels):
        shape = (self.num_classes, channels) if self.num_classes else (channels,)
        self.gamma = self.add_weight(shape=shape, initializer="ones", autocast=False, name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", autocast=False, name="beta")

    def call(self, inputs, training=False):
        images, labels = inputs
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        if self.num_classes:
            gamma = ops.take(gamma, labels, axis=0)[:, None, None, :]  # [B, 1, 1, C]
            beta = ops.take(beta, labels, axis=0)[:, None, None, :]
        return self._normalize(images, gamma, beta, training)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@_serializable
class SelfAttention(keras.layers.Layer):
    """Self-attention over all positions of a feature map, added to its input.

    With N = H W positions, M = N/4 pooled ones (N without pooling) and C channels:

        theta = conv1x1(x) [N, C/8],  phi = pool(conv1x1(x)) [M, C/8],  g = pool(conv1x1(x)) [M, C/2]
        attention = softmax(theta phi^T) [N, M]
        y = x + gamma * conv1x1(attention g)

    The four convolutions are spectrally normalised and have no bias; gamma is one scalar, initialised to 0, so that the
    layer starts as the identity. There is no 1/sqrt(C) scaling.

    Input and output `[B, H, W, C]`; with `return_attention=True` also the attention,
    `[B, H, W, h, w]` float32, each `[h, w]` summing to 1. Pooling wants H and W even.

    ```python
    import keras
    from sagan_tf.layers import SelfAttention

    inputs = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(64, 3, padding="same")(inputs)
    model = keras.Model(inputs, SelfAttention()(features))
    assert model(keras.random.normal((2, 32, 32, 3)), training=True).shape == (2, 32, 32, 64)

    outputs, attention = SelfAttention()(keras.random.normal((2, 32, 32, 64)), return_attention=True)
    assert attention.shape == (2, 32, 32, 16, 16)
    ```

    Args:
      pooling: max-pool phi and g 2x2, as the reference does; False is the paper's text.
      conv_options: arguments for the four `SNConv2D`.
      max_attention_bytes: the largest part of the `[N, M]` attention of one image that is held at once, in bytes; a
        larger one is computed in query chunks, again in the backward pass.
      **kwargs: `name` and `dtype`.

    Reference: paper section 3 and figure 2.
    """

    def __init__(self, pooling: bool = True, conv_options: dict | None = None, max_attention_bytes: int = 2**25, **kwargs: Any):
        super().__init__(**kwargs)
        self.pooling = pooling
        self.conv_options = dict(conv_options or {})
        self.max_attention_bytes = max_attention_bytes

    def build(self, input_shape):
        channels = input_shape[-1]
        for name, filters, in_channels in (
            ("theta", max(channels // 8, 1), channels),
            ("phi", max(channels // 8, 1), channels),
            ("g", max(channels // 2, 1), channels),
            ("attn", channels, max(channels // 2, 1)),
        ):
            conv = SNConv2D(filters, 1, use_bias=False, name=name, dtype=self.dtype_policy, **self.conv_options)
            conv.build((*input_shape[:-1], in_channels))
            setattr(self, name, conv)
        self.gamma = self.add_weight(shape=(), initializer="zeros", name="gamma")

    def _keys(self, features):
        if self.pooling:
            features = ops.max_pool(features, 2, strides=2, padding="valid", data_format="channels_last")
        return ops.reshape(features, (-1, features.shape[1] * features.shape[2], features.shape[3]))  # [B, M, c]

    def call(self, inputs, training=False, return_attention=False):
        _, height, width, channels = inputs.shape
        positions = height * width
        theta = ops.reshape(self.theta(inputs, training=training), (-1, positions, max(channels // 8, 1)))  # [B, N, C/8]
        phi = self._keys(self.phi(inputs, training=training))  # [B, M, C/8]
        g = self._keys(self.g(inputs, training=training))  # [B, M, C/2]

        if return_attention:
            attention = _attention(theta, phi)
            attended = ops.matmul(ops.cast(attention, g.dtype), g)
        else:
            attended = _attend(theta, phi, g, -(-4 * positions * g.shape[1] // self.max_attention_bytes))
        attended = ops.reshape(attended, (-1, height, width, g.shape[-1]))
        outputs = inputs + self.gamma * self.attn(attended, training=training)
        if return_attention:
            keys = (height // 2, width // 2) if self.pooling else (height, width)
            return outputs, ops.reshape(attention, (-1, height, width, *keys))
        return outputs

    def get_config(self):
        names = ("pooling", "conv_options", "max_attention_bytes")
        return super().get_config() | {name: getattr(self, name) for name in names}


def _attention(theta, phi):
    """Returns softmax(theta phi^T): `[B, N, c]` and `[B, M, c]` to float32 `[B, N, M]`."""
    scores = ops.matmul(theta, ops.transpose(phi, (0, 2, 1)))
    return ops.softmax(ops.cast(scores, "float32"), axis=-1)


def _attend(theta, phi, g, chunks):
    """Returns softmax(theta phi^T) g, `[B, N, C/2]`, in so many chunks of queries."""

    def attend(queries, phi, g):
        return ops.matmul(ops.cast(_attention(queries, phi), g.dtype), g)

    if chunks <= 1:
        return attend(theta, phi, g)
    chunk = -(-theta.shape[1] // chunks)
    # Recomputed in the backward pass, so that only one chunk's attention exists at a time.
    attend = keras.remat(attend)
    parts = [attend(theta[:, start : start + chunk], phi, g) for start in range(0, theta.shape[1], chunk)]
    return ops.concatenate(parts, axis=1)


@_serializable
class ResidualBlock(keras.layers.Layer):
    """The paper's control for the attention block: a residual block with as many weights.

    `y = x + conv3x3(relu(conv3x3(relu(x))))`, C channels in and out. The paper compares with "residual blocks with the
    same number of parameters" and says no more; attention has 5/4 C^2 weights, so the inner width here is the one that
    brings 18 C width nearest to that, and there is no batch norm (its class tables alone would outweigh the attention).

    Args:
      conv_options: arguments for the two `SNConv2D`.
      **kwargs: `name` and `dtype`.

    Reference: paper section 5.2 and table 1.
    """

    def __init__(self, conv_options: dict | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.conv_options = dict(conv_options or {})

    def build(self, input_shape):
        channels = input_shape[-1]
        width = max(1, round(channels * 1.25 / 18))
        self.conv_1 = SNConv2D(width, 3, name="conv_1", dtype=self.dtype_policy, **self.conv_options)
        self.conv_1.build(input_shape)
        self.conv_2 = SNConv2D(channels, 3, name="conv_2", dtype=self.dtype_policy, **self.conv_options)
        self.conv_2.build((*input_shape[:-1], width))

    def call(self, inputs, training=False):
        inner = self.conv_1(ops.relu(inputs), training=training)
        return inputs + self.conv_2(ops.relu(inner), training=training)

    def get_config(self):
        return {**super().get_config(), "conv_options": self.conv_options}
