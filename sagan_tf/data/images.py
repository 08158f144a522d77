"""Image files to pixels, with the reference's preprocessing."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

# Where a corrupt file or record ends: too many kinds of exception to tell apart.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def preprocess(file: "str | os.PathLike | bytes", size: int) -> np.ndarray:
    """Reads an image file as the reference does its training images.

    Centre crop to the shorter side, then Pillow's bilinear filter to `size`; transparency is laid
    on white, orientation tags are obeyed, and of an animation the first frame is taken.

    Args:
      file: a path, or the bytes of the file.
      size: height and width of the result, in pixels.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      OSError, ValueError, SyntaxError: if it cannot be decoded (`DECODE_ERRORS`).
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        if image.size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        if side != size:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image)


def list_folder(path: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Lists the images of a folder: one subfolder per class, or flat.

    Args:
      path: the folder; its class subfolders may be nested.

    Returns:
      Paths in sorted order, their labels (all 0 if flat), and the class names (none if flat).

    Raises:
      ValueError: in a sentence, if the folder is missing, empty, or partly flat.
    """
    if not os.path.isdir(path):
        raise ValueError(f"The image folder {path} does not exist.")
    entries = sorted(entry for entry in os.listdir(path) if not entry.startswith("."))
    classes = [entry for entry in entries if os.path.isdir(os.path.join(path, entry))]
    flat = [os.path.join(path, entry) for entry in entries if entry.lower().endswith(EXTENSIONS)]
    if classes and flat:
        raise ValueError(f"The folder {path} holds both images and class folders: move the images into a class folder.")
    if not classes:
        if not flat:
            raise ValueError(f"The folder {path} holds no images ({', '.join(EXTENSIONS)}) and no class folders.")
        return flat, [0] * len(flat), ()
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = [
            os.path.join(parent, file)
            for parent, folders, files in sorted(os.walk(os.path.join(path, name)))
            for file in sorted(files)
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
        if not found:
            raise ValueError(f"The class folder {os.path.join(path, name)} holds no images: remove it or fill it.")
        paths += found
        labels += [label] * len(found)
    return paths, labels, tuple(classes)
