"""`folder:PATH`: image files, a subfolder per class, or flat for unconditional training."""

import numpy as np

from sagan_tf.data import images
from sagan_tf.data.loader import CorruptExample, Loader

__all__ = ["FolderSource"]


class FolderSource:
    """Images read from their files by index.

    Args:
      path: the folder.
      image_size: size to crop and resize to, in pixels.
      max_corrupt: corrupt files to pass over.

    Raises:
      UserError: if the folder is missing, empty, or mixes images and class folders.
    """

    def __init__(self, path: str, image_size: int, max_corrupt: int = 0):
        self.paths, self._labels, self.class_names = images.list_folder(path)
        self.num_examples = len(self.paths)
        self.num_classes = len(self.class_names)
        self._image_size = image_size
        self.examples = Loader(self._load, image_size, self.num_examples, max_corrupt)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        try:
            return images.preprocess(self.paths[index], self._image_size), self._labels[index]
        except images.DECODE_ERRORS as error:
            raise CorruptExample(f"{self.paths[index]} cannot be read as an image ({error})") from error
