"""A generator as a SavedModel that needs only TensorFlow: written, and loaded back."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from sagan_tf import files, networks, pixels, sampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError

__all__ = ["Exported", "export", "load", "quiet"]


def export(config: Config, generator: keras.Model, export_dir: str) -> None:
    """Writes a generator as a SavedModel, its spectral norms folded into the kernels.

    Signatures, for any batch size B:
      serving_default: `z` float32 `[B, z_dim]`, `labels` int32 `[B]` to `images` float32 `[B, H, W, 3]` in [-1, 1].
      sample: `labels` int32 `[B]`, `seed` int32 `[]` to `images` uint8 `[B, H, W, 3]`.
      attention (if the generator has self-attention): the inputs of serving_default to `images` and
        `attention` float32 `[B, H, W, h, w]`.

    Args:
      config: of the run.
      generator: its trained generator.
      export_dir: where to write.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    folded = networks.folded_generator(generator, config)
    z_spec = tf.TensorSpec([None, config.z_dim], tf.float32, "z")
    labels_spec = tf.TensorSpec([None], tf.int32, "labels")
    seed_spec = tf.TensorSpec([], tf.int32, "seed")

    @tf.function(input_signature=[z_spec, labels_spec])
    def serve(z, labels):
        return {"images": folded([z, labels], training=False)}

    @tf.function(input_signature=[labels_spec, seed_spec])
    def sample(labels, seed):
        z = tf.random.stateless_normal([tf.shape(labels)[0], config.z_dim], tf.stack([seed, 0]))
        return {"images": pixels.quantize(folded([z, labels], training=False))}

    # A plain module: Keras' own objects stay out of the file, so that loading it needs only TensorFlow.
    module = tf.Module()
    module.weights = [variable.value for variable in folded.variables]
    signatures = {"serving_default": serve, "sample": sample}
    if any(layer.name == "attention" for layer in folded.layers):
        attentive = networks.with_attention(folded)

        @tf.function(input_signature=[z_spec, labels_spec])
        def attend(z, labels):
            images, attention = attentive([z, labels])
            return {"images": images, "attention": attention}

        signatures["attention"] = attend
    with quiet():  # TensorFlow notes the renaming of its inner tensors.
        tf.saved_model.save(module, export_dir, signatures=signatures)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the progress notes of libraries out of the output; warnings stay."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A generator loaded from the SavedModel that `export` wrote.

    Attributes:
      path: of its directory.
      image_size: in pixels.
      z_dim: dimensions of z.
      num_classes: classes that it knows; 0: none, and labels are not read.
      gamma: of its self-attention; None: it has none.
      model: what TensorFlow loaded.
    """

    path: str
    image_size: int
    z_dim: int
    num_classes: int
    gamma: float | None
    model: Any

    def sampler(self, draws: sampling.Draws) -> sampling.Sampler:
        """Returns its sampler.

        Args:
          draws: how z is drawn. A SavedModel has moving averages alone, so `batch_norm` is neither read nor recorded.
        """

        def draw(numbers: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            z = sampling.draw_z(numbers, self.z_dim, draws.seed, draws.truncation)
            # Through the model: alone, a signature would lose its variables.
            return self.model.signatures["serving_default"](z=z, labels=labels)["images"]

        facts = {"seed": draws.seed, "truncation": draws.truncation, "generated_by": self.path}
        return sampling.Sampler(draw, self.num_classes, facts)

    def attend(self, z: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws images with their attention maps.

        Args:
          z: float32 `[B, z_dim]`.
          labels: int32 `[B]`.

        Returns:
          Images, float32 `[B, H, W, 3]` in [-1, 1], and maps, float32 `[B, H, W, h, w]`.

        Raises:
          UserError: if it has no self-attention.
        """
        if self.gamma is None:
            reason = "has no attention signature: export a run that was trained with self-attention."
            raise UserError(f"--saved_model={self.path} {reason}")
        outputs = self.model.signatures["attention"](z=z, labels=labels)
        return outputs["images"], outputs["attention"]


def load(path: str) -> Exported:
    """Loads what `export` wrote, in the current strategy's scope.

    Args:
      path: of its directory.

    Raises:
      UserError: if it is missing, or no such SavedModel.
    """
    path = files.resolve(path, "saved_model")
    if not files.is_dir(path):
        raise UserError(f"--saved_model={path} does not exist: name the directory that sagan-export wrote.")
    try:
        model = tf.saved_model.load(path)
        serve = model.signatures["serving_default"]
        variables = {variable.name.removesuffix(":0"): variable for variable in model.weights}
        # Conditional batch norm keeps a row per class: the signature itself does not say how many there are.
        conditional = variables["block_1/cbn_1/gamma"].shape
        return Exported(
            path=path,
            image_size=serve.structured_outputs["images"].shape[1],
            z_dim=serve.structured_input_signature[1]["z"].shape[1],
            num_classes=conditional[0] if len(conditional) == 2 else 0,
            gamma=float(variables["attention/gamma"].numpy()) if "attention" in model.signatures else None,
            model=model,
        )
    except (OSError, KeyError, AttributeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--saved_model={path} is not a SavedModel that sagan-export wrote ({reason}): name another.") from error
