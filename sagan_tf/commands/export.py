"""`sagan-export`: writes a trained generator as a SavedModel that needs only TensorFlow, for TFLite, and for ONNX."""

from absl import flags

from sagan_tf import files
from sagan_tf.commands import cli
from sagan_tf.export import formats
from sagan_tf.runs.run import load_run

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("export_dir", "", "Directory to write the SavedModel to; it must be empty or not exist.")
    choices = ", ".join(formats.FORMATS)
    flags.DEFINE_list("formats", ["saved_model"], f"What to write, comma-separated: {choices}; the SavedModel is always written.")
    cli.define_checkpoint_flags()


def main() -> None:
    """Exports a trained generator: a SavedModel, both networks as .keras files, and a model card.

    sagan-export --model_dir=DIR --export_dir=OUT
    sagan-export --model_dir=DIR --export_dir=OUT --formats=saved_model,tflite,onnx

    The SavedModel loads where only TensorFlow is installed; OUT/keras/generator.keras and
    OUT/keras/discriminator.keras load with keras.saving.load_model where sagan_tf.networks is imported.
    OUT/README.md says what the generator is, how to use each file, and how good it was measured to be.
    """
    formats.check(FLAGS.export_dir, FLAGS.formats)
    trained = load_run(cli.trained_config().model_dir)
    formats.export_run(trained, FLAGS.export_dir, FLAGS.formats, FLAGS.checkpoint_step, FLAGS.use_ema)
    print(f"SavedModel in {FLAGS.export_dir}: {files.join(FLAGS.export_dir, 'README.md')} says how to use it.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
