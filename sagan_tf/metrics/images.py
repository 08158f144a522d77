"""Images to measure that no generator of ours draws: a folder of files, an `.npz` file, or an array."""

import os

import numpy as np
from PIL import Image

from sagan_tf import files
from sagan_tf.data import Source
from sagan_tf.data import images as image_files
from sagan_tf.data.arrays import ArraySource
from sagan_tf.data.loader import Loader, data_error
from sagan_tf.errors import UserError

__all__ = ["Images"]


class Images:
    """Images to measure, or to measure against: all square and of one size, none cropped or resized.

    Args:
      images: a folder of image files, flat or with class folders; an `.npz` file with an array `images`, as
        `sagan-sample --num_images` writes; or an array, uint8 `[N, S, S, 3]`.

    Attributes:
      source: reads them by index; without labels.
      size: S, in pixels, of the first image.
      name: what a record calls them.
      facts: what a record says of them.
      num_classes: 0: labels are not looked at.
      step: None: they are of no checkpoint.

    Raises:
      UserError: if there are none, or they cannot be read.
    """

    num_classes = 0
    step = None

    def __init__(self, images: "str | os.PathLike[str] | np.ndarray"):
        source: _Files | ArraySource
        if isinstance(images, np.ndarray):
            self.name, source = "an array", ArraySource(images)
        else:
            self.name = os.fspath(images)
            archive = self.name.endswith(".npz") and not files.is_dir(self.name)
            source = ArraySource(_read_archive(self.name), name=f"`images` in {self.name}") if archive else _Files(self.name)
        self.source: Source = source
        self.size = source.image_size
        self.facts = {"generated_by": self.name}


def _read_archive(path: str) -> np.ndarray:
    try:
        with files.reading(path) as content, np.load(content, allow_pickle=False) as file:
            return file["images"]
    except Exception as error:  # A damaged archive raises whatever its damage leads to.
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as an .npz file with an array `images` ({reason}): check the path.") from error


class _Files:
    """The files of a folder as a source, each taken as it is."""

    num_classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, path: str):
        self._paths, _, _ = image_files.list_folder(path)
        self.num_examples = len(self._paths)
        self.image_size = len(_pixels(self._paths[0]))
        self.examples = Loader(self._load, self.image_size, self.num_examples, 0)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        try:
            return _pixels(self._paths[index], self.image_size), 0
        except UserError as error:
            raise data_error(str(error)) from error


def _pixels(file: str, size: int = 0) -> np.ndarray:
    """Returns the pixels of a square image, of this size unless it is 0."""
    try:
        with Image.open(file) as image:
            width, height = image.size
        if width != height or size not in (0, width):
            raise UserError(f"{file} is {width}x{height}; all images must be square, of one size.")
        return image_files.preprocess(file, width)
    except UserError:
        raise
    except image_files.DECODE_ERRORS as error:
        raise UserError(f"{file} cannot be read as an image ({error}): remove it or make it again.") from error
