"""Self-Attention GAN (arXiv 1805.08318) in TensorFlow 2 and Keras 3.

The names below are loaded when first used, so that importing the package does not import
TensorFlow, and the layers work on any Keras backend.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "sagan_tf.config",
    "UserError": "sagan_tf.errors",
    "generator": "sagan_tf.networks",
    "discriminator": "sagan_tf.networks",
    "restore": "sagan_tf.runs.checkpoints",
    "load_run": "sagan_tf.runs.run",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sagan_tf' has no attribute {name!r}")
