"""`twins`: generated images in which long-range agreement is what matters, and can be measured.

Each image carries two square tiles, far apart on a black ground, with the same pattern of cells,
new for every image, in the colour of the image's class. Each tile alone is easy to draw; that the two
agree takes a comparison across the image. How well a generator does so is a number, `agreement`,
computed from the pixels alone.
"""

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from sagan_tf.data.agreement import agreement as agreement_of_parts
from sagan_tf.errors import UserError

__all__ = ["COLOURS", "NUM_EXAMPLES", "TwinsSource", "agreement", "labels", "layout", "patterns", "render", "tiles"]

NUM_EXAMPLES = 2**17

# One class each. Ground and colours lie at the ends of the range, where tanh saturates: a mid-grey ground
# would ask the generator to hold an exact value everywhere, which it learns by ignoring z.
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
    "orange": (255, 128, 0),
}
DEFAULT_CLASSES = 6
GROUND = (0, 0, 0)


def layout(image_size: int, cells: int) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Returns the side of a cell and the (top, left) corners of the two tiles, in pixels.

    A tile is three eighths of the image wide, rounded down to whole cells; the first stands near the
    top left corner, the second near the bottom right.

    Raises:
      UserError: if the cells would be smaller than two pixels.
    """
    cell = image_size * 3 // 8 // cells
    if cell < 2:
        raise UserError(f"--twins_cells={cells} is too many for --image_size={image_size}: at most {image_size * 3 // 16}.")
    margin = image_size // 16
    far = image_size - margin - cell * cells
    return cell, (margin, margin), (far, far)


def patterns(indices: tf.Tensor, seed: int, cells: int) -> tf.Tensor:
    """Returns the patterns of these examples, bool `[B, cells, cells]`, a function of (seed, index).

    True is a cell of the class's colour. Never all or none: such a tile would show no pattern to agree on.
    """
    size = [cells * cells]
    bits = (
        tf.map_fn(
            lambda i: tf.random.stateless_uniform(size, [seed, i]), tf.cast(indices, tf.int64), fn_output_signature=tf.float32
        )
        < 0.5
    )
    plain = tf.reduce_all(bits, 1, keepdims=True) | ~tf.reduce_any(bits, 1, keepdims=True)
    bits ^= plain & (tf.range(cells * cells) == 0)[None]
    return tf.reshape(bits, [-1, cells, cells])


def labels(indices: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns the class of each example, int32 `[B]`: they take turns."""
    return tf.cast(tf.cast(indices, tf.int64) % num_classes, tf.int32)


def render(bits: tf.Tensor, classes: tf.Tensor, image_size: int) -> tf.Tensor:
    """Draws images, float32 `[B, image_size, image_size, 3]` in [-1, 1], with both tiles of these patterns.

    Args:
      bits: bool `[B, cells, cells]`, the coloured cells.
      classes: int `[B]`.
      image_size: in pixels.
    """
    cells = bits.shape[1]
    cell, *corners = layout(image_size, cells)
    colours = tf.gather(tf.constant(list(COLOURS.values()), tf.float32), classes)[:, None, None, :]
    tile = tf.where(bits[..., None], colours, tf.constant(GROUND, tf.float32))
    tile = tf.repeat(tf.repeat(tile, cell, axis=1), cell, axis=2)  # [B, side, side, 3]
    side = cell * cells
    ground = tf.constant(GROUND, tf.float32)
    image = 0.0
    for top, left in corners:
        frame = [[0, 0], [top, image_size - top - side], [left, image_size - left - side], [0, 0]]
        image += tf.pad(tile - ground, frame)
    return (image + ground) / 127.5 - 1.0


def tiles(images: ArrayLike, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the two tiles out of images `[N, S, S, 3]`: two arrays `[N, side, side, 3]`."""
    images = np.asarray(images)
    cell, *corners = layout(images.shape[1], cells)
    side = cell * cells
    first, second = (images[:, top : top + side, left : left + side] for top, left in corners)
    return first, second


def agreement(images: ArrayLike, labels: ArrayLike | None = None, cells: int = 3) -> float:
    """Returns how alike the two tiles of an image are (see `data/agreement.py`): 1 in the data, 0 by chance.

    Args:
      images: `[N, S, S, 3]` in [-1, 1].
      labels: int `[N]`; None: one class.
      cells: cells along each side of a tile.
    """
    return agreement_of_parts(*tiles(images, cells), labels)


class TwinsSource:
    """The dataset as a source of examples by index.

    Args:
      image_size: height and width, in pixels.
      cells: cells along each side of a tile.
      num_classes: 1 to 8; -1 or 0: six.
      seed: of the patterns.

    Raises:
      UserError: if there are not so many classes, or the cells would be too small.
    """

    def __init__(self, image_size: int, cells: int = 3, num_classes: int = -1, seed: int = 0):
        self.num_classes = num_classes if num_classes > 0 else DEFAULT_CLASSES
        if self.num_classes > len(COLOURS):
            raise UserError(f"--num_classes={num_classes}: the dataset twins has at most {len(COLOURS)} classes, a colour each.")
        layout(image_size, cells)
        self.image_size, self.cells, self.seed = image_size, cells, seed
        self.class_names = tuple(COLOURS)[: self.num_classes]
        self.num_examples = NUM_EXAMPLES

    def examples(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the examples of these indices, `{"images", "labels"}`."""
        classes = labels(indices, self.num_classes)
        return {"images": render(patterns(indices, self.seed, self.cells), classes, self.image_size), "labels": classes}
