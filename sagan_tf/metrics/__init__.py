"""What the package measures, with which classifier, against which images, and what is kept on record.

The names below are loaded when first used, so that importing this does not import TF-GAN.

```python
record = sagan_tf.metrics.compare("generated/", "real/", classifier="inception")
print(record.values["fid"])
```
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagan_tf.metrics.evaluator import Evaluator, Protocol, compare
    from sagan_tf.metrics.images import Images
    from sagan_tf.metrics.record import Record

__all__ = ["Evaluator", "Images", "Protocol", "Record", "compare"]

_MODULES = {"Images": "images", "Record": "record"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"sagan_tf.metrics.{_MODULES.get(name, 'evaluator')}"), name)
    raise AttributeError(f"module 'sagan_tf.metrics' has no attribute {name!r}")
