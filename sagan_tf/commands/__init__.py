"""The commands: flags to values, one call of the library, a closing sentence.

Importing this package imports TensorFlow, without the start-up notes that would bury a command's own output.
"""

import importlib
import os

__all__: list[str] = []

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # Whatever ~/.keras/keras.json says.


def _import_tensorflow() -> None:
    """Imports TensorFlow without the notes that it writes to stderr past every log level."""
    stderr, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.get_logger().setLevel("ERROR")  # Deprecations inside the libraries we call.
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(sink)


_import_tensorflow()
