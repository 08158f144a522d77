"""Images in memory, as a source."""

import numpy as np

from sagan_tf.data.loader import Loader
from sagan_tf.errors import UserError

__all__ = ["ArraySource"]


class ArraySource:
    """An array of images, read by index.

    Args:
      images: uint8 `[N, S, S, 3]`.
      labels: int `[N]`, from 0 on; None: there are none.
      name: of the array, for errors.

    Attributes:
      image_size: S, in pixels.
      examples: int64 indices `[B]` to `{"images", "labels"}`.

    Raises:
      UserError: if the images are of another shape or type, or none.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, name: str = "The array"):
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not images.size:
            raise UserError(f"{name} must hold uint8 images [N, S, S, 3], not {images.dtype} {list(shape)}.")
        numbers = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels, np.int64)
        self.num_examples, self.image_size = shape[:2]
        self.num_classes = 0 if labels is None else int(numbers.max()) + 1
        self.class_names: tuple[str, ...] = ()
        self.examples = Loader(lambda index: (images[index], numbers[index]), self.image_size, self.num_examples, 0)
