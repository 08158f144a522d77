"""The commands: flags to values, one call of the library, a closing sentence.

Importing this package imports TensorFlow, without the start-up notes that would bury a command's own output.
"""

import ctypes
import importlib
import os
import sys

__all__: list[str] = []

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # Whatever ~/.keras/keras.json says.

# glibc's numbers and our values of M_TRIM_THRESHOLD and M_TOP_PAD, in bytes, M_MMAP_MAX and M_ARENA_MAX.
_MALLOPT = ((-1, 2**31 - 1), (-2, 2**28), (-4, 0), (-8, 2))


def _keep_memory() -> None:
    """Lets glibc keep what is freed.

    Every step asks for the same tensors again. New pages for them took two fifths of a small training's processor time.
    Environment variables for glibc (`MALLOC_...`, `GLIBC_TUNABLES`) hold instead. Other C libraries are left alone.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not own else None
    if mallopt is not None:
        for setting in _MALLOPT:
            mallopt(*setting)


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


_keep_memory()  # First: threads that run already have arenas of their own.
_import_tensorflow()
