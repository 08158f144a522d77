"""The figure of attention, as in the paper: images with query points, and where each point looks.

Pillow draws it, since every tile is an image of exact pixels.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagan_tf.attention.maps import Point, Sample, cell, distinct_queries
from sagan_tf.errors import UserError

__all__ = ["COLOURS", "figure", "overlay", "parse_queries"]

# One for each query, told apart on dimmed grey.
COLOURS = (
    (255, 92, 82),
    (72, 196, 255),
    (255, 218, 40),
    (110, 236, 120),
    (236, 130, 252),
    (255, 158, 44),
    (40, 226, 190),
    (160, 168, 255),
)
# Under a map the image keeps so much of its colour and brightness; at its maximum a map covers it so far.
SATURATION, BRIGHTNESS, OPACITY = 0.2, 0.5, 0.85
_TILE, _PADDING, _FONT_SIZE = 160, 10, 14


def figure(samples: Iterable[Sample], network: str, heading: str, queries: Sequence[Point] = ()) -> np.ndarray:
    """Draws samples, one per row: the image with its query points, then for each point where it looks.

    Args:
      samples: at least one.
      network: whose maps to draw.
      heading: the first line.
      queries: at most `len(COLOURS)` points in image pixels, the same in every image; none: `distinct_queries` of each.

    Returns:
      uint8 `[height, width, 3]`.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    line = _FONT_SIZE + 6
    rows = [_figure_row(sample, sample.maps[network], queries, font) for sample in samples]
    width = rows[0].width
    explanation = (
        "Left: the image and its query points. Then, for each point: where it looks, the brighter the more "
        "(each tile relative to its own maximum). Below a tile: its largest weight, in multiples of an even share; "
        "at 1.0x a point looks everywhere alike."
    )
    columns = int((width - 2 * _PADDING) / (font.getlength(explanation) / len(explanation)))
    title = textwrap.wrap(heading, columns)
    lines = title + textwrap.wrap(explanation, columns)
    sheet = Image.new("RGB", (width, line * len(lines) + 2 * _PADDING + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(lines):
        draw.text((_PADDING, _PADDING + number * line), text, (0, 0, 0) if number < len(title) else (90, 90, 90), font)
    top = 2 * _PADDING + line * len(lines)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return np.asarray(sheet)


def _figure_row(sample: Sample, maps: np.ndarray, queries: Sequence[Point], font) -> Image.Image:
    size = len(sample.image)
    factor = -(-_TILE // size)
    side = factor * size
    points = queries or distinct_queries(maps, size)
    row = Image.new("RGB", (_PADDING + (1 + len(points)) * (side + _PADDING), side + _FONT_SIZE + 2 * _PADDING), "white")
    draw = ImageDraw.Draw(row)
    image = np.asarray(Image.fromarray(sample.image).resize((side, side), Image.Resampling.NEAREST))
    row.paste(Image.fromarray(image), (_PADDING, 0))
    draw.rectangle((_PADDING - 1, -1, _PADDING + side, side), outline=(200, 200, 200))
    draw.text((_PADDING, side + 4), f"class {sample.label}", (0, 0, 0), font)
    for number, (point, colour) in enumerate(zip(points, COLOURS, strict=False), start=1):
        i, j = cell(point, size, maps)
        left = _PADDING + number * (side + _PADDING)
        row.paste(Image.fromarray(overlay(image, maps[i, j], colour)), (left, 0))
        # A dot stands in the middle of the cell that is asked, but whole inside the image.
        x, y = (min(max(at, 11), side - 11) for at in ((j + 0.5) * side / maps.shape[1], (i + 0.5) * side / maps.shape[0]))
        draw.circle((left + x, y), 6, outline=(0, 0, 0), width=4)
        draw.circle((left + x, y), 5, outline=(255, 255, 255), width=2)
        for centre in ((_PADDING + x, y), (left + 10, side + 13)):
            draw.circle(centre, 9, fill=colour, outline=(0, 0, 0), width=1)
            draw.text(centre, str(number), (0, 0, 0), font, anchor="mm")
        peak = maps[i, j].max() * maps[i, j].size
        draw.text((left + 25, side + 4), f"{peak:.1f}x", (0, 0, 0), font)
    return row


def overlay(image: np.ndarray, weights: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """Lays a map over an image: the image pale and dim, the more of the colour the larger the weight.

    Args:
      image: uint8 `[S, S, 3]`.
      weights: one query's map, `[h, w]`; brightness is relative to its maximum, bilinear between the keys.
      colour: red, green, blue, 0..255.

    Returns:
      uint8 `[S, S, 3]`.
    """
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32))
    alpha = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))[..., None] * OPACITY
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
    pale = BRIGHTNESS * (SATURATION * image + (1 - SATURATION) * grey)
    return np.rint(pale * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(np.uint8)


def parse_queries(text: str, image_size: int) -> list[Point]:
    """Returns the points that `--queries` means; none if it is empty.

    Raises:
      UserError: if it is malformed, a point is outside the image, or there are more points than colours.
    """
    points = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = re.fullmatch(r"(-?\d+)\s*,\s*(-?\d+)", part)
        if not match:
            raise UserError(f"--queries: {part!r} is not a point: write x,y in pixels, and ; between points, as in 8,8;20,12.")
        point = (int(match[1]), int(match[2]))
        if not all(0 <= value < image_size for value in point):
            raise UserError(f"--queries: {part!r} is outside the image: x and y are 0 to {image_size - 1}.")
        points.append(point)
    if len(points) > len(COLOURS):
        raise UserError(f"--queries names {len(points)} points: a figure shows at most {len(COLOURS)}.")
    return points
