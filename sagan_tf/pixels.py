"""Pixels: [-1, 1] to uint8, and images laid out for people."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

__all__ = ["animation", "enlarge", "from_uint8", "grid", "png", "quantize", "table", "to_uint8"]

# Of tables and animations: small images are enlarged by whole factors to about this height, in pixels.
TILE, FRAME = 128, 300
_FONT_SIZE, _GAP = 12, 6
FRAME_MILLISECONDS = 80


def quantize(images: Any) -> tf.Tensor:
    """Turns float images in [-1, 1], of any shape, into uint8 0..255, rounding to the nearest."""
    return tf.saturate_cast(tf.round((images + 1.0) * 127.5), tf.uint8)


def to_uint8(images: Any) -> np.ndarray:
    """Returns what `quantize` does, as an array."""
    return quantize(images).numpy()


def from_uint8(images: Any) -> tf.Tensor:
    """Turns uint8 pixels 0..255 into float32 in [-1, 1], as the reference does its training images."""
    return tf.cast(images, tf.float32) * (2.0 / 255.0) - 1.0


def grid(images: Any, columns: int, padding: int = 2) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: `[N, H, W, 3]` in [-1, 1].
      columns: images per row.
      padding: pixels between images.

    Returns:
      uint8 `[rows * (H + padding) + padding, columns * (W + padding) + padding, 3]`.
    """
    tiles = np.pad(to_uint8(images), ((0, -len(images) % columns), (padding, 0), (padding, 0), (0, 0)), constant_values=255)
    _, height, width, channels = tiles.shape
    sheet = tiles.reshape(-1, columns, height, width, channels).swapaxes(1, 2).reshape(-1, columns * width, channels)
    return np.pad(sheet, ((0, padding), (0, padding), (0, 0)), constant_values=255)


def enlarge(image: np.ndarray, least: int) -> np.ndarray:
    """Repeats the pixels of `[H, W, 3]` by the largest whole factor that leaves it no higher than `least`, or 1."""
    factor = max(least // len(image), 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def table(
    images: Sequence[Sequence[np.ndarray]] | np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> np.ndarray:
    """Lays images out on white with names of the rows at the left and of the columns above.

    Args:
      images: rows of as many uint8 `[H, W, 3]` each, all of one size.
      row_names: one for each row.
      column_names: one for each column, or none.
      captions: a text of one or more lines below each image, or none.

    Returns:
      uint8 `[height, width, 3]`.
    """
    tiles = [[enlarge(image, TILE) for image in row] for row in images]
    font = ImageFont.load_default(_FONT_SIZE)
    lines = max((text.count("\n") + 1 for row in captions for text in row), default=0)
    text_height = lines * (_FONT_SIZE + 4)
    # A column is as wide as the widest of its image and the texts.
    texts = [*column_names, *(line for row in captions for text in row for line in text.split("\n"))]
    side = tiles[0][0].shape[0]
    across = max([side, *(math.ceil(font.getlength(text)) for text in texts)]) + _GAP
    left = max(math.ceil(font.getlength(name)) for name in row_names) + 2 * _GAP
    top = _FONT_SIZE + 2 * _GAP if column_names else _GAP
    down = side + text_height + _GAP
    sheet = Image.new("RGB", (left + across * len(tiles[0]), top + down * len(tiles)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, name in enumerate(column_names):
        draw.text((left + j * across + side / 2, top / 2), name, "black", font, anchor="mm")
    for i, row in enumerate(tiles):
        draw.text((left - _GAP, top + i * down + side / 2), row_names[i], "black", font, anchor="rm")
        for j, tile in enumerate(row):
            sheet.paste(Image.fromarray(tile), (left + j * across, top + i * down))
            if captions:
                centre = (left + j * across + side / 2, top + i * down + side + 3)
                draw.multiline_text(centre, captions[i][j], (90, 90, 90), font, anchor="ma", align="center", spacing=3)
    return np.asarray(sheet)


def png(image: np.ndarray, optimize: bool = False) -> bytes:
    """Returns a uint8 image `[H, W, 3]` as a PNG file; `optimize` takes longer to make a smaller one."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="PNG", optimize=optimize)
    return encoded.getvalue()


def animation(frames: Sequence[np.ndarray], kind: str) -> bytes:
    """Returns frames as an endless animation.

    Args:
      frames: uint8 `[H, W, 3]`, all of one size.
      kind: "webp" for lossless WebP, or "gif", whose frames keep 256 colours each.
    """
    first, *others = [Image.fromarray(enlarge(frame, FRAME)) for frame in frames]
    encoded = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    first.save(encoded, kind, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, **options)
    return encoded.getvalue()
