"""The generator and the discriminator: the blocks, and the networks that the paper's tables make of them."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from sagan_tf.architecture import DISCRIMINATOR, GENERATOR
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.layers import (
    BatchNormalization,
    ConditionalBatchNormalization,
    ResidualBlock,
    SelfAttention,
    SNConv2D,
    SNDense,
    SNEmbedding,
    power_iteration,
)

__all__ = [
    "DownBlock",
    "ProjectionHead",
    "State",
    "UpBlock",
    "discriminator",
    "folded_generator",
    "generator",
    "model_state",
    "spectral_norms",
    "with_attention",
]

# Variables by the names they have in a checkpoint; a backend's own ones among them.
State = Mapping[str, Any]
# Of layers, by the names of their arguments.
Options = Mapping[str, Any]

_serializable = keras.saving.register_keras_serializable(package="sagan_tf")


class _Block(keras.layers.Layer):
    """A residual block; `conv_options` go to each `SNConv2D` in it."""

    def __init__(self, filters, conv_options=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv_options = dict(conv_options or {})

    def _conv(self, name, input_shape, kernel_size=3, resample=None):
        conv = SNConv2D(self.filters, kernel_size, resample, name=name, dtype=self.dtype_policy, **self.conv_options)
        conv.build(input_shape)
        setattr(self, name, conv)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "conv_options": self.conv_options}


@_serializable
class UpBlock(_Block):
    """The generator's block: twice the resolution, class-conditional batch norm.

    CBN, ReLU, nearest x2, SN conv 3x3, CBN, ReLU, SN conv 3x3; shortcut: nearest x2, SN conv
    1x1. Call with `[features [B, H, W, C], labels [B]]`; returns `[B, 2H, 2W, filters]`.
    """

    def __init__(
        self,
        filters: int,
        num_classes: int,
        conv_options: Options | None = None,
        batch_norm_options: Options | None = None,
        **kwargs: Any,
    ):
        super().__init__(filters, conv_options, **kwargs)
        self.num_classes = num_classes
        self.batch_norm_options = dict(batch_norm_options or {})

    def build(self, input_shape):
        inputs, labels = input_shape
        inner = (inputs[0], 2 * inputs[1], 2 * inputs[2], self.filters)
        for name, shape in (("cbn_1", inputs), ("cbn_2", inner)):
            norm = ConditionalBatchNormalization(self.num_classes, name=name, dtype=self.dtype_policy, **self.batch_norm_options)
            norm.build([shape, labels])
            setattr(self, name, norm)
        self._conv("conv_1", inputs, resample="up")
        self._conv("conv_2", inner)
        self._conv("shortcut", inputs, kernel_size=1, resample="up")

    def call(self, inputs, training=False):
        x, labels = inputs
        y = ops.relu(self.cbn_1([x, labels], training=training))
        y = ops.relu(self.cbn_2([self.conv_1(y, training=training), labels], training=training))
        return self.conv_2(y, training=training) + self.shortcut(x, training=training)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "batch_norm_options": self.batch_norm_options}


@_serializable
class DownBlock(_Block):
    """The discriminator's block: half the resolution, or the same.

    ReLU, SN conv 3x3, ReLU, SN conv 3x3, 2x2 average pool; shortcut: SN conv 1x1, average pool.
    The first block of the network has no ReLU before its first convolution; a block that neither
    pools nor changes the width has no convolution on its shortcut. `[B, H, W, C]` to
    `[B, H/2, W/2, filters]`.
    """

    def __init__(self, filters: int, pool: bool = True, first: bool = False, conv_options: Options | None = None, **kwargs: Any):
        super().__init__(filters, conv_options, **kwargs)
        self.pool = pool
        self.first = first

    def build(self, input_shape):
        resample = "down" if self.pool else None
        self._conv("conv_1", input_shape)
        self._conv("conv_2", (*input_shape[:-1], self.filters), resample=resample)
        if self.pool or input_shape[-1] != self.filters:
            self._conv("shortcut", input_shape, kernel_size=1, resample=resample)
        else:
            self.shortcut = None

    def call(self, inputs, training=False):
        x = inputs if self.first else ops.relu(inputs)
        x = ops.relu(self.conv_1(x, training=training))
        x = self.conv_2(x, training=training)
        return x + (inputs if self.shortcut is None else self.shortcut(inputs, training=training))

    def get_config(self):
        return {**super().get_config(), "pool": self.pool, "first": self.first}


@_serializable
class ProjectionHead(keras.layers.Layer):
    """The projection discriminator's last layer: features and labels to a logit.

    `h = sum over space of relu(features)` (a sum, not a mean); logit = `SNDense(h) + h .
    SNEmbedding(label)`, `[B, 1]` float32. With `num_classes=0` the second term is left out.

    Reference: Miyato and Koyama, arXiv 1802.05637.
    """

    def __init__(self, num_classes: int, spectral_norm_options: Options | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.spectral_norm_options = dict(spectral_norm_options or {})

    def build(self, input_shape):
        features, labels = input_shape
        self.dense = SNDense(1, name="dense", dtype=self.dtype_policy, **self.spectral_norm_options)
        self.dense.build((features[0], features[-1]))
        if self.num_classes:
            self.embedding = SNEmbedding(
                self.num_classes, features[-1], name="embedding", dtype=self.dtype_policy, **self.spectral_norm_options
            )
            self.embedding.build(labels)

    def call(self, inputs, training=False):
        features, labels = inputs
        h = ops.sum(ops.relu(features), axis=(1, 2))  # [B, C]
        logits = self.dense(h, training=training)  # [B, 1]
        if self.num_classes:
            logits += ops.sum(h * self.embedding(labels, training=training), axis=1, keepdims=True)
        return logits

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "spectral_norm_options": self.spectral_norm_options,
        }


def _options(config: Config, spectral_norm: bool) -> tuple[dict, dict, str]:
    """Returns the options of SN layers, those of SN convolutions, and the dtype policy."""
    if config.num_classes < 0:
        raise UserError("num_classes=-1 leaves the number of classes to a dataset: give num_classes, 0 for no classes.")
    spectral_norm_options = {
        "spectral_norm": spectral_norm,
        "spectral_norm_gradient": config.spectral_norm_gradient,
        "spectral_norm_epsilon": config.spectral_norm_epsilon,
    }
    policy = "float32" if config.mixed_precision == "none" else f"mixed_{config.mixed_precision}"
    return spectral_norm_options, {**spectral_norm_options, "fused_resampling": config.fused_resampling}, policy


def _attention_block(config: Config, conv_options: dict, policy: str) -> keras.layers.Layer:
    if config.attention_block == "residual":
        return ResidualBlock(conv_options, name="residual", dtype=policy)
    return SelfAttention(config.attention_pooling, conv_options, name="attention", dtype=policy)


def generator(config: Config) -> keras.Model:
    """Returns the generator, a functional model of the paper's table.

    Call it as `generator([z, labels], training=False)`: `z` float32 `[B, z_dim]`, standard normal;
    `labels` int32 `[B]` in `0..num_classes-1` (not read if `num_classes=0`). Returns images, float32
    `[B, image_size, image_size, 3]` in [-1, 1].

    Raises:
      UserError: if `num_classes` is -1, which only a dataset can answer.
    """
    sn_options, conv_options, policy = _options(config, config.generator_spectral_norm)
    batch_norm_options: dict[str, Any] = {"synchronized": config.sync_batch_norm, "momentum": config.batch_norm_decay or 0.999}
    (start, multiple), *rows = GENERATOR[config.image_size]
    width = multiple * config.gf_dim

    z = keras.Input((config.z_dim,), name="z")
    labels = keras.Input((), dtype="int32", name="labels")
    x = SNDense(start * start * width, name="dense", dtype=policy, **sn_options)(z)
    x = keras.layers.Reshape((start, start, width), name="reshape", dtype=policy)(x)
    for number, (resolution, multiple) in enumerate(rows, start=1):
        block = UpBlock(
            multiple * config.gf_dim,
            config.num_classes,
            conv_options,
            batch_norm_options,
            name=f"block_{number}",
            dtype=policy,
        )
        x = block([x, labels])
        if resolution == config.attention_resolution:
            x = _attention_block(config, conv_options, policy)(x)
    # The reference's last batch norm is another one: slower decay, unbiased moving variance.
    last_options = {**batch_norm_options, "momentum": config.batch_norm_decay or 0.9999}
    norm = BatchNormalization(unbiased_moving_variance=True, name="batch_norm", dtype=policy, **last_options)
    x = keras.layers.ReLU(name="relu", dtype=policy)(norm(x))
    x = SNConv2D(3, 3, name="conv", dtype=policy, **conv_options)(x)
    images = keras.layers.Activation("tanh", name="images", dtype="float32")(x)
    return keras.Model([z, labels], images, name="generator")


def discriminator(config: Config) -> keras.Model:
    """Returns the discriminator, a functional model of the paper's table.

    Call it as `discriminator([images, labels], training=False)`: `images` float32 `[B, image_size,
    image_size, 3]` in [-1, 1], `labels` int32 `[B]` (not read if `num_classes=0`). Returns logits, float32
    `[B, 1]`, positive for real.

    Raises:
      UserError: if `num_classes` is -1, which only a dataset can answer.
    """
    sn_options, conv_options, policy = _options(config, config.discriminator_spectral_norm)

    images = keras.Input((config.image_size, config.image_size, 3), name="images")
    labels = keras.Input((), dtype="int32", name="labels")
    x, before = images, config.image_size
    for number, (resolution, multiple) in enumerate(DISCRIMINATOR[config.image_size], start=1):
        block = DownBlock(
            multiple * config.df_dim,
            pool=resolution < before,
            first=number == 1,
            conv_options=conv_options,
            name=f"block_{number}",
            dtype=policy,
        )
        x = block(x)
        # A plain block may repeat the resolution: attention stands after the first block that reaches it.
        if resolution == config.attention_resolution and resolution < before:
            x = _attention_block(config, conv_options, policy)(x)
        before = resolution
    logits = ProjectionHead(config.num_classes, sn_options, name="logits", dtype="float32")([x, labels])
    return keras.Model([images, labels], logits, name="discriminator")


def model_state(name: str, model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables of a model by the names they have in a checkpoint."""
    return {f"{name}/{variable.path}": variable for variable in model.variables}


def spectral_norms(model: keras.Model) -> dict[str, Any]:
    """Returns sigma of each spectrally normalised layer, by layer path, as the next forward pass will find it."""
    variables = {variable.path: ops.convert_to_tensor(variable) for variable in model.variables}
    sigmas = {}
    for path, u in variables.items():
        layer, _, name = path.rpartition("/")
        if name != "u":
            continue
        if f"{layer}/embeddings" in variables:
            matrix = ops.transpose(variables[f"{layer}/embeddings"])
        else:
            weight = variables[f"{layer}/kernel"]
            matrix = ops.reshape(weight, (-1, weight.shape[-1]))
        sigmas[layer] = power_iteration(matrix, u)[0]
    return sigmas


def folded_generator(model: keras.Model, config: Config) -> keras.Model:
    """Returns the same generator with each spectral norm divided into its kernel: no `u`, nothing to normalise."""
    plain = generator(config.replace(generator_spectral_norm=False, fused_resampling="never", mixed_precision="none"))
    sigmas, values = spectral_norms(model), {variable.path: ops.convert_to_tensor(variable) for variable in model.variables}
    for variable in plain.variables:
        layer, _, name = variable.path.rpartition("/")
        value = values[variable.path]
        variable.assign(value / sigmas[layer] if name == "kernel" and layer in sigmas else value)
    return plain


def with_attention(model: keras.Model) -> Callable:
    """Returns a function of the model's inputs that returns what `model` does and the attention map.

    The map is float32 `[B, H, W, h, w]`: for each of the `H x W` positions of the feature map, the
    weights over the `h x w` keys, which sum to 1. Evaluation mode.

    Raises:
      UserError: if the model has no self-attention.
    """
    layers = [layer for layer in model.layers if isinstance(layer, SelfAttention)]
    if not layers:
        raise UserError(f"The {model.name} has no self-attention (see --attention_resolution and --attention_block).")
    features = keras.Model(model.inputs, layers[0].input)

    def call(inputs):
        _, attention = layers[0](features(inputs, training=False), return_attention=True)
        return model(inputs, training=False), attention

    return call
