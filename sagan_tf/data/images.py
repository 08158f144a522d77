"""Image files to pixels, with the reference's preprocessing."""

import io
import os
import struct

import numpy as np
from PIL import Image, ImageOps

from sagan_tf.errors import UserError

__all__ = ["DECODE_ERRORS", "EXTENSIONS", "list_folder", "preprocess"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

# Where a corrupt file or record ends: too many kinds of exception to tell apart.
DECODE_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    SyntaxError,
    struct.error,
    Image.DecompressionBombError,
)


def preprocess(file: str | os.PathLike | bytes, size: int) -> np.ndarray:
    """Reads an image file as the reference does its training images.

    Centre crop to the shorter side, then Pillow's bilinear filter to `size`; transparency is laid
    on white, orientation tags are obeyed, and of an animation the first frame is taken.

    Args:
      file: a path, or the bytes of the file.
      size: height and width of the result, in pixels.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      DECODE_ERRORS: one of them, if it cannot be decoded.
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion would clip it to white.
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
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
      UserError: if the folder is missing, unreadable, empty, or partly flat.
    """
    path = os.path.expanduser(path)
    try:
        with os.scandir(path) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
        classes = sorted(name for name in is_folder if is_folder[name])
        flat = [os.path.join(path, name) for name in sorted(is_folder) if not is_folder[name] and _is_image(name)]
        inside = [_walk(os.path.join(path, name)) for name in classes]
    except NotADirectoryError as error:
        raise UserError(f"The image folder {error.filename} is a file: name the folder that holds it.") from error
    except FileNotFoundError as error:
        raise UserError(f"The image folder {error.filename} does not exist: check the path.") from error
    except OSError as error:
        raise UserError(f"The image folder {error.filename} cannot be read ({error.strerror}): check the path.") from error
    if classes and flat:
        raise UserError(f"The folder {path} holds both images and class folders: move the images into a class folder.")
    if not classes and not flat:
        raise UserError(f"The folder {path} holds no images ({', '.join(EXTENSIONS)}) and no class folders: name another.")
    for name, found in zip(classes, inside, strict=True):
        if not found:
            raise UserError(f"The class folder {os.path.join(path, name)} holds no images: remove it or fill it.")
    labels = [label for label, found in enumerate(inside) for _ in found] or [0] * len(flat)
    return flat + [file for found in inside for file in found], labels, tuple(classes)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _walk(path: str) -> list[str]:
    """Returns the image files at any depth below a folder, in sorted order."""

    def fail(error: OSError) -> None:
        raise error

    walk = sorted(os.walk(path, onerror=fail))
    return [os.path.join(parent, name) for parent, _, names in walk for name in sorted(names) if _is_image(name)]
