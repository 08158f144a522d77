"""Self-Attention GAN (arXiv 1805.08318) in TensorFlow 2 and Keras 3.

The public names are loaded when first used, so that importing the package does not import TensorFlow, and the layers
work on any Keras backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagan_tf import layers, losses, metrics, networks
    from sagan_tf.config import Config
    from sagan_tf.errors import UserError
    from sagan_tf.networks import discriminator, generator
    from sagan_tf.runs.hooks import Hook
    from sagan_tf.runs.loop import train
    from sagan_tf.runs.run import Run, load_run, pretrained

__all__ = [
    "Config",
    "Hook",
    "Run",
    "UserError",
    "discriminator",
    "generator",
    "layers",
    "load_run",
    "losses",
    "metrics",
    "networks",
    "pretrained",
    "train",
]
__version__ = "0.1.0"

# Where the names that are no modules are defined.
_HOMES = {"Config": "config", "UserError": "errors", "generator": "networks", "discriminator": "networks"}
_HOMES |= {"Hook": "runs.hooks", "train": "runs.loop", "Run": "runs.run", "load_run": "runs.run", "pretrained": "runs.run"}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sagan_tf' has no attribute {name!r}")
    module = importlib.import_module(f"sagan_tf.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module
