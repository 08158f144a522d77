"""Differentiable augmentation of the images that the discriminator sees: DiffAugment (Zhao et al., arXiv 2006.10738).

A discriminator that sees few images learns them by heart. It does so less if it never sees one twice: real and generated images
are changed at random, alike in kind, before they reach it. The generator learns through the same changes, by their gradient, and so
it has no reason to draw them.

The strengths are those of the paper and its code. `color` is brightness, saturation and contrast, in this order. `translation`
moves an image by up to an eighth of its size. `cutout` takes a square of half its size away.
"""

from typing import Any

from keras import ops

__all__ = ["DRAWS", "augment"]

# Uniform numbers that an image takes, whichever policies are applied: brightness, saturation, contrast; vertical and horizontal
# translation; vertical and horizontal place of the cutout.
DRAWS = 7
_TRANSLATION, _CUTOUT = 3, 5


def augment(images: Any, draws: Any, policies: str) -> Any:
    """Returns images changed at random, as the numbers say.

    Args:
      images: `[B, H, W, C]`, in [-1, 1] or beyond; computed with in float32, whatever they are.
      draws: `[B, DRAWS]` in [0, 1). Independent uniform numbers make the changes those of DiffAugment.
      policies: of `color`, `translation` and `cutout`, with commas between; they are applied in the order named. Empty: none.

    Returns:
      float32 `[B, H, W, C]`. It is not clipped, so that colours may leave [-1, 1]. For fixed draws it is an affine function of the
      images.

    Raises:
      ValueError: if a policy is unknown, or the draws have another shape.
    """
    images, draws = (ops.cast(ops.convert_to_tensor(values), "float32") for values in (images, draws))
    # Where several machines train, a graph does not know the number of real images. It knows that of the draws.
    if images.shape[0] not in (None, draws.shape[0]) or draws.shape[1:] != (DRAWS,):
        raise ValueError(f"draws must be [{images.shape[0]}, {DRAWS}], not {list(draws.shape)}")
    for name in policies.split(",") if policies else ():
        if name not in _POLICIES:
            raise ValueError(f"policies must be of {', '.join(_POLICIES)}, not {name!r}")
        images = _POLICIES[name](images, draws)
    return images


def _color(images, draws):
    """Adds -0.5 to 0.5, then multiplies the distances from the grey of each pixel by 0 to 2, from the mean by 0.5 to 1.5."""
    brightness, saturation, contrast = (draws[:, column, None, None, None] for column in range(3))
    images = images + (brightness - 0.5)
    grey = ops.mean(images, axis=3, keepdims=True)
    images = grey + (images - grey) * (2.0 * saturation)
    mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (contrast + 0.5)


def _translation(images, draws):
    """Moves images by a whole number of pixels, up to an eighth of the size each way; zeros move in."""
    _, height, width, channels = images.shape
    origins, inside = [], []
    for size, draw in ((height, draws[:, _TRANSLATION]), (width, draws[:, _TRANSLATION + 1])):
        most = (size + 4) // 8  # To the nearest.
        origin = ops.arange(size, dtype="int32") - (_whole(draw, 2 * most + 1) - most)[:, None]  # [B, size]
        inside.append(ops.logical_and(origin >= 0, origin < size))
        origins.append(origin % size)
    # What leaves at one side comes in at the other, and the mask takes it away. So each pixel is read once: the gradient of the
    # gathering adds nothing up, which a GPU would do in any order.
    first = height * width * ops.arange(draws.shape[0], dtype="int32")
    places = first[:, None, None] + width * origins[0][:, :, None] + origins[1][:, None]
    moved = ops.take(ops.reshape(images, (-1, channels)), places, axis=0)
    return moved * _mask(*inside)


def _cutout(images, draws):
    """Sets a square of half the size to zero. Its centre may be anywhere, so that a part may lie outside."""
    _, height, width, _ = images.shape
    covered = []
    for size, draw in ((height, draws[:, _CUTOUT]), (width, draws[:, _CUTOUT + 1])):
        side = (size + 1) // 2
        behind = ops.arange(size, dtype="int32") - (_whole(draw, size + 1 - side % 2) - side // 2)[:, None]  # [B, size]
        covered.append(ops.logical_and(behind >= 0, behind < side))
    return images * (1.0 - _mask(*covered))


def _mask(rows, columns):
    """Returns float32 `[B, H, W, 1]`: 1 where both the row, bool `[B, H]`, and the column, bool `[B, W]`, are marked."""
    return ops.cast(ops.logical_and(rows[:, :, None], columns[:, None]), "float32")[..., None]


def _whole(draws, count):
    """Turns uniform numbers in [0, 1) into int32 numbers from 0 to `count - 1`, each as likely."""
    return ops.cast(ops.floor(draws * count), "int32")


_POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}
