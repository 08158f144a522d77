"""Everything an export holds: the SavedModel, both networks as Keras files, TFLite, ONNX, and the model card."""

import importlib.util
import tempfile
from collections.abc import Sequence

import tensorflow as tf

from sagan_tf import files
from sagan_tf.errors import UserError
from sagan_tf.export import model_card, saved_model
from sagan_tf.runs.run import Networks, Run

__all__ = ["FORMATS", "check", "export_run", "write_keras", "write_onnx", "write_tflite"]

FORMATS = ("saved_model", "tflite", "onnx")
# The newest that tf2onnx 1.17 writes.
_ONNX_OPSET = 18


def export_run(
    run: Run, export_dir: str, formats: Sequence[str] = ("saved_model",), step: int | None = None, use_ema: bool | None = None
) -> None:
    """Writes a trained generator and all that belongs to it.

    Args:
      run: the training run.
      export_dir: where to write; empty or missing.
      formats: of `FORMATS`; the SavedModel, the Keras files and the model card are always written.
      step: of the checkpoint; None: the newest that can be read.
      use_ema: take the averaged generator; None: if the run has one.

    Raises:
      UserError: as `check` and `Run.networks`; or if the directory cannot be written.
    """
    check(export_dir, formats)
    export_dir = files.resolve(export_dir, "export_dir", checkpoints=True)
    trained = run.networks(step, use_ema)
    card = model_card.text(run, trained, formats)
    try:
        saved_model.export(run.config, trained.generator, export_dir)
        write_keras(trained, export_dir)
        if "tflite" in formats:
            write_tflite(export_dir)
        if "onnx" in formats:
            write_onnx(export_dir)
        files.write(files.join(export_dir, "README.md"), card)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"--export_dir={export_dir} cannot be written ({str(error).splitlines()[0]}).") from error


def check(export_dir: str, formats: Sequence[str]) -> None:
    """Refuses what cannot be written.

    Raises:
      UserError: if the directory is not named, or holds something; if there is no such format, or what writes it is
        not installed.
    """
    if not export_dir:
        raise UserError("--export_dir is missing: name a directory for the SavedModel.")
    directory = files.resolve(export_dir, "export_dir", checkpoints=True)
    if files.exists(directory) and (not files.is_dir(directory) or files.listing(directory)):
        raise UserError(f"--export_dir={export_dir} is not empty: choose another, or remove it.")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--formats={','.join(formats)}: {unknown[0]!r} is not one of {', '.join(FORMATS)}.")
    if "onnx" in formats and not importlib.util.find_spec("tf2onnx"):
        raise UserError("--formats=onnx needs tf2onnx, which is not installed: pip install tf2onnx.")


def write_keras(trained: Networks, export_dir: str) -> None:
    """Writes both networks to `keras/NAME.keras`.

    Args:
      trained: the networks.
      export_dir: of the SavedModel.
    """
    for model in (trained.generator, trained.discriminator):
        with tempfile.TemporaryDirectory() as directory:  # Keras knows some schemes only, and looks at the suffix.
            model.save(path := files.join(directory, f"{model.name}.keras"))
            files.write(files.join(export_dir, "keras", f"{model.name}.keras"), files.read(path))


def write_tflite(export_dir: str) -> None:
    """Writes `generator.tflite` beside a SavedModel: its `serving_default`, in float32, for any batch size.

    Args:
      export_dir: of the SavedModel.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(export_dir, signature_keys=["serving_default"])
    files.write(files.join(export_dir, "generator.tflite"), converter.convert())


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

    with saved_model.quiet():  # tf2onnx notes each pass over the graph.
        converted, _ = tf2onnx.convert.from_function(serve, specs, opset=_ONNX_OPSET)
    for value in [*converted.graph.input, *converted.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    files.write(files.join(export_dir, "generator.onnx"), converted.SerializeToString())
