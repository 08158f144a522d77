"""`sagan-export`: writes a trained generator as a SavedModel that needs only TensorFlow."""

import os

from sagan_tf import cli  # isort: skip  (sets TensorFlow's log level before it is imported)

import keras
import tensorflow as tf
from absl import flags, logging

from sagan_tf import config as config_lib
from sagan_tf import networks
from sagan_tf.checkpoints import restore
from sagan_tf.config import Config
from sagan_tf.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("export_dir", "", "Directory to write the SavedModel to; it must be empty or not exist.")
    flags.DEFINE_integer("checkpoint_step", None, "Step of the checkpoint to read; by default the newest.")
    flags.DEFINE_boolean("use_ema", None, "Use the averaged generator; by default if the run has one.")


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
        images = tf.round((folded([z, labels], training=False) + 1.0) * 127.5)
        return {"images": tf.saturate_cast(images, tf.uint8)}

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
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # TensorFlow notes the renaming of its inner tensors.
    tf.saved_model.save(module, export_dir, signatures=signatures)
    logging.set_verbosity(verbosity)


def main() -> None:
    """Exports a trained generator: a SavedModel, and both networks as .keras files.

    sagan-export --model_dir=DIR --export_dir=OUT

    The SavedModel loads where only TensorFlow is installed; OUT/keras/generator.keras and
    OUT/keras/discriminator.keras load with keras.saving.load_model where sagan_tf is imported.
    """
    if not FLAGS.export_dir:
        raise UserError("--export_dir is missing: name a directory for the SavedModel.")
    if os.path.exists(FLAGS.export_dir) and (not os.path.isdir(FLAGS.export_dir) or os.listdir(FLAGS.export_dir)):
        raise UserError(f"--export_dir={FLAGS.export_dir} is not empty: choose another, or remove it.")
    config = config_lib.load(cli.trained_config().model_dir)
    generator, discriminator = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    try:
        export(config, generator, FLAGS.export_dir)
        os.makedirs(os.path.join(FLAGS.export_dir, "keras"))
        for model in (generator, discriminator):
            model.save(os.path.join(FLAGS.export_dir, "keras", f"{model.name}.keras"))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"--export_dir={FLAGS.export_dir} cannot be written ({str(error).splitlines()[0]}).") from error
    print(f"SavedModel in {FLAGS.export_dir}; see it with: saved_model_cli show --dir {FLAGS.export_dir} --tag_set serve --all")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
