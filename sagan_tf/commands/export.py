"""`sagan-export`: writes a trained generator as a SavedModel that needs only TensorFlow, for TFLite, and for ONNX."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from absl import flags, logging

from sagan_tf import config as config_lib
from sagan_tf import networks, pixels
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.export import model_card
from sagan_tf.runs import history
from sagan_tf.runs.checkpoints import restore_with_step, uses_ema, write_file

FLAGS = flags.FLAGS

FORMATS = ("saved_model", "tflite", "onnx")
# The newest that tf2onnx 1.17 writes.
_ONNX_OPSET = 18


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("export_dir", "", "Directory to write the SavedModel to; it must be empty or not exist.")
    flags.DEFINE_list(
        "formats", ["saved_model"], f"What to write, comma-separated: {', '.join(FORMATS)}; the SavedModel is always written."
    )
    cli.define_checkpoint_flags()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the progress notes of libraries out of the output; warnings stay."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


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
    with _quiet():  # TensorFlow notes the renaming of its inner tensors.
        tf.saved_model.save(module, export_dir, signatures=signatures)


def check_formats(formats: Sequence[str]) -> None:
    """Refuses formats that cannot be written.

    Raises:
      UserError: if there is no such format, or what writes it is not installed.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--formats={','.join(formats)}: {unknown[0]!r} is not one of {', '.join(FORMATS)}.")
    if "onnx" in formats and not importlib.util.find_spec("tf2onnx"):
        raise UserError("--formats=onnx needs tf2onnx, which is not installed: pip install tf2onnx.")


def write_tflite(export_dir: str) -> None:
    """Writes `generator.tflite` beside a SavedModel: its `serving_default`, in float32, for any batch size.

    Args:
      export_dir: of the SavedModel.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(export_dir, signature_keys=["serving_default"])
    with open(os.path.join(export_dir, "generator.tflite"), "wb") as file:
        file.write(converter.convert())


def write_onnx(export_dir: str) -> None:
    """Writes `generator.onnx` beside a SavedModel: its `serving_default`, in float32, for any batch size.

    Args:
      export_dir: of the SavedModel.
    """
    import tf2onnx

    model = tf.saved_model.load(export_dir)
    _, inputs = model.signatures["serving_default"].structured_input_signature
    specs = [inputs["z"], inputs["labels"]]

    @tf.function(input_signature=specs)
    def serve(z, labels):
        return model.signatures["serving_default"](z=z, labels=labels)

    with _quiet():  # tf2onnx notes each pass over the graph.
        converted, _ = tf2onnx.convert.from_function(serve, specs, opset=_ONNX_OPSET)
    for value in [*converted.graph.input, *converted.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    with open(os.path.join(export_dir, "generator.onnx"), "wb") as file:
        file.write(converted.SerializeToString())


def main() -> None:
    """Exports a trained generator: a SavedModel, both networks as .keras files, and a model card.

    sagan-export --model_dir=DIR --export_dir=OUT
    sagan-export --model_dir=DIR --export_dir=OUT --formats=saved_model,tflite,onnx

    The SavedModel loads where only TensorFlow is installed; OUT/keras/generator.keras and
    OUT/keras/discriminator.keras load with keras.saving.load_model where sagan_tf.networks is imported.
    OUT/README.md says what the generator is, how to use each file, and how good it was measured to be.
    """
    if not FLAGS.export_dir:
        raise UserError("--export_dir is missing: name a directory for the SavedModel.")
    if os.path.exists(FLAGS.export_dir) and (not os.path.isdir(FLAGS.export_dir) or os.listdir(FLAGS.export_dir)):
        raise UserError(f"--export_dir={FLAGS.export_dir} is not empty: choose another, or remove it.")
    check_formats(FLAGS.formats)
    config = config_lib.load(cli.trained_config().model_dir)
    generator, discriminator, step = restore_with_step(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    use_ema = uses_ema(config, FLAGS.use_ema)
    card = model_card.text(config, generator, step, use_ema, FLAGS.formats, history.read(config.model_dir))
    try:
        export(config, generator, FLAGS.export_dir)
        os.makedirs(os.path.join(FLAGS.export_dir, "keras"))
        for model in (generator, discriminator):
            model.save(os.path.join(FLAGS.export_dir, "keras", f"{model.name}.keras"))
        if "tflite" in FLAGS.formats:
            write_tflite(FLAGS.export_dir)
        if "onnx" in FLAGS.formats:
            write_onnx(FLAGS.export_dir)
        write_file(os.path.join(FLAGS.export_dir, "README.md"), card)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"--export_dir={FLAGS.export_dir} cannot be written ({str(error).splitlines()[0]}).") from error
    print(f"SavedModel in {FLAGS.export_dir}: {os.path.join(FLAGS.export_dir, 'README.md')} says how to use it.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
