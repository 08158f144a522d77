"""`faces`: generated faces whose two eyes agree, which takes a comparison across the image.

The class of a face is its expression. Both eyes have one iris colour and one gaze, new for every image,
while skin, hair, face, mouth and background vary on their own. Mismatched eyes are what generated faces
are known by. The eyes stand at fixed places on whole pixels, so how well they match is a number,
`agreement`, computed from the pixels alone.

Coordinates are in half widths of the image from its middle: x to the right and y downwards, from -1 to 1.
"""

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sagan_tf.errors import UserError

__all__ = ["EXPRESSIONS", "EYE_TRAITS", "HUES", "NUM_EXAMPLES", "TRAITS", "FacesSource", "agreement", "eyes", "iris_hues"]
__all__ += ["labels", "render", "traits"]

NUM_EXAMPLES = 2**17

EXPRESSIONS = ("smile", "sad", "flat", "surprised", "laugh", "smirk")
SMILE, SAD, FLAT, SURPRISED, LAUGH, SMIRK = range(len(EXPRESSIONS))

# In half widths. Every one of the places is a whole pixel at 32 px, and so at its multiples.
EYE_X, EYE_Y = 5 / 16, -1 / 16
EYE_PATCH = 5 / 16  # Half the side of the square that an eye is drawn in.
EYE_WIDTH, EYE_HEIGHT = 4.7 / 16, 4.4 / 16  # Half axes of the white.
IRIS, PUPIL, GLINT = 3.7 / 16, 1.2 / 16, 0.7 / 16  # Radii.
GAZE_X, GAZE_Y = 1.1 / 16, 0.8 / 16  # How far an iris moves from the middle of its eye.
# Top, bottom and half the width of the part that mouths are drawn in, right below the eyes' squares.
MOUTH_BOX = (4 / 16, 15 / 16, 9 / 16)

EDGE = 1.5  # Pixels over which an edge goes from one colour to the other.
# Up to this size, what would be smaller than a pixel or two is left out: ears, nose, cheeks, lids, glints and tongues.
PLAIN_SIZE = 32

# What varies, each by a number of its own that is uniform from 0 to 1.
EYE_TRAITS = ("iris_hue", "iris_saturation", "iris_value", "gaze_x", "gaze_y")
TRAITS = (
    *EYE_TRAITS,
    *("ground_hue", "ground_change", "ground_saturation", "ground_value", "ground_contrast", "ground_angle"),
    *("skin_kind", "skin_tone", "skin_hue", "skin_saturation", "blush"),
    *("face_width", "face_height", "face_top", "jaw"),
    *("hair_kind", "hair_hue", "hair_saturation", "hair_value", "hair_length", "hair_volume"),
    *("hairline", "hairline_slant", "hairline_curve"),
    *("mouth_hue", "mouth_saturation", "mouth_value", "mouth_width", "mouth_height", "mouth_bend"),
)

# RGB from 0 to 1, light to deep; a tone lies between two neighbours.
SKINS = ((1.00, 0.87, 0.76), (0.96, 0.77, 0.60), (0.83, 0.61, 0.43), (0.62, 0.41, 0.27), (0.42, 0.27, 0.19))
# Black, brown, chestnut, red, blond, ash.
HAIRS = ((0.13, 0.11, 0.13), (0.30, 0.18, 0.11), (0.48, 0.27, 0.14), (0.74, 0.31, 0.13), (0.93, 0.76, 0.42), (0.72, 0.70, 0.70))
# Hues from 0 to 1 that look about equally far apart: red, orange, yellow, green, cyan, blue, violet, pink, red.
HUES = (0.0, 0.075, 0.145, 0.34, 0.50, 0.62, 0.76, 0.90, 1.0)
FANCIFUL_SKIN, FANCIFUL_HAIR = 0.2, 0.45  # The share of images with a colour of any hue.
LASHES = (0.16, 0.10, 0.12)
INSIDE, TEETH, TONGUE = (0.30, 0.06, 0.10), (0.98, 0.96, 0.93), (0.70, 0.24, 0.30)


def _mix(number: tf.Tensor) -> tf.Tensor:
    """Scrambles uint64 numbers: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    number = xor(number, shift(number, tf.constant(30, tf.uint64))) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    number = xor(number, shift(number, tf.constant(27, tf.uint64))) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return xor(number, shift(number, tf.constant(31, tf.uint64)))


def traits(indices: tf.Tensor, seed: int) -> dict[str, tf.Tensor]:
    """Returns what these examples look like: for each of `TRAITS`, float32 `[B]` in [0, 1), a function of (seed, index)."""
    step = 0x9E3779B97F4A7C15  # SplitMix64's: 2**64 by the golden ratio.
    start = _mix(tf.constant((seed + 1) * step % 2**64, tf.uint64))
    states = _mix(tf.bitwise.bitwise_xor(tf.cast(indices, tf.uint64), start))
    # An array: in a graph, TensorFlow 2.21 rounds a list of such large numbers to floats.
    steps = np.array([(number + 1) * step % 2**64 for number in range(len(TRAITS))], np.uint64)
    bits = tf.bitwise.right_shift(_mix(states[None] + steps[:, None]), tf.constant(40, tf.uint64))
    return dict(zip(TRAITS, tf.unstack(tf.cast(tf.cast(bits, tf.int32), tf.float32) / 2.0**24), strict=True))


def labels(indices: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns the class of each example, int32 `[B]`: they take turns."""
    return tf.cast(tf.cast(indices, tf.int64) % num_classes, tf.int32)


def iris_hues(indices: tf.Tensor, seed: int) -> tf.Tensor:
    """Returns the hue of the irises of each example, float32 `[B]` in [0, 1), as a place on the wheel of `HUES`."""
    return traits(indices, seed)["iris_hue"]


def _hsv(hue: tf.Tensor, saturation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Returns RGB `[B, 3]` from 0 to 1 of hues on the wheel of `HUES`, which goes round."""
    place = hue % 1.0 * (len(HUES) - 1)
    low = tf.floor(place)
    ends = [tf.gather(tf.constant(HUES), tf.cast(low, tf.int32) + step) for step in (0, 1)]
    return tf.image.hsv_to_rgb(tf.stack([ends[0] + (ends[1] - ends[0]) * (place - low), saturation, value], axis=-1))


def _between(number: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Returns a trait moved from [0, 1) to a range, as `[B, 1, 1]`."""
    return (low + (high - low) * number)[:, None, None]


def _skin(t: Mapping[str, tf.Tensor]) -> tf.Tensor:
    place = t["skin_tone"] * (len(SKINS) - 1)
    low = tf.floor(place)
    part, low = (place - low)[:, None], tf.cast(low, tf.int32)
    tones = tf.constant(SKINS)
    natural = tf.gather(tones, low) * (1 - part) + tf.gather(tones, low + 1) * part
    fanciful = _hsv(t["skin_hue"], 0.25 + 0.35 * t["skin_saturation"], 0.70 + 0.25 * t["skin_tone"])
    return tf.where((t["skin_kind"] < FANCIFUL_SKIN)[:, None], fanciful, natural)


def _hair(t: Mapping[str, tf.Tensor]) -> tf.Tensor:
    place = t["hair_hue"] * len(HAIRS)
    natural = tf.gather(tf.constant(HAIRS), tf.cast(place, tf.int32)) * (0.8 + 0.3 * t["hair_value"])[:, None]
    fanciful = _hsv(t["hair_hue"], 0.55 + 0.4 * t["hair_saturation"], 0.45 + 0.5 * t["hair_value"])
    return tf.minimum(tf.where((t["hair_kind"] < FANCIFUL_HAIR)[:, None], fanciful, natural), 1.0)


def _lips(t: Mapping[str, tf.Tensor], skin: tf.Tensor) -> tf.Tensor:
    """Returns a red that stands out: dark on light skin and light on dark skin."""
    light = tf.reduce_mean(skin, axis=1) > 0.5
    value = tf.where(light, 0.40 + 0.30 * t["mouth_value"], 0.85 + 0.15 * t["mouth_value"])
    saturation = tf.where(light, 0.65 + 0.25 * t["mouth_saturation"], 0.45 + 0.25 * t["mouth_saturation"])
    return _hsv(0.92 + 0.12 * t["mouth_hue"], saturation, value)


def _axis(start: float, stop: float, size: int) -> tf.Tensor:
    """Returns the middles of the pixels between two places, in half widths."""
    first, last = round((start + 1) * size / 2), round((stop + 1) * size / 2)
    return tf.constant((np.arange(first, last) + 0.5) * 2 / size - 1, tf.float32)


def _ellipse(x: tf.Tensor, y: tf.Tensor, width, height) -> tf.Tensor:
    """Returns the distance to an ellipse with these half axes, negative inside, exact to first order near its edge."""
    x, y = x / width, y / height
    norm = tf.sqrt(x * x + y * y + 1e-6)
    return norm * (norm - 1.0) * tf.math.rsqrt(tf.square(x / width) + tf.square(y / height) + 1e-6)


def _rounded(first: tf.Tensor, second: tf.Tensor, radius: float) -> tf.Tensor:
    """Returns the distance to what two shapes have in common, its corners rounded."""
    first, second = first + radius, second + radius
    outside = tf.sqrt(tf.square(tf.nn.relu(first)) + tf.square(tf.nn.relu(second)))
    return outside + tf.minimum(tf.maximum(first, second), 0.0) - radius


def _cover(distance: tf.Tensor, size: int) -> tf.Tensor:
    """Returns how much of a pixel a shape covers, 0 to 1, `[..., 1]`, given the distance from its middle to the edge."""
    return tf.clip_by_value(0.5 - distance * (size / (2 * EDGE)), 0.0, 1.0)[..., None]


def _over(below: tf.Tensor, colour: tf.Tensor, cover: tf.Tensor) -> tf.Tensor:
    return below + (colour - below) * cover


def _wide(colour: tf.Tensor) -> tf.Tensor:
    """Returns colours `[B, 3]` as `[B, 1, 1, 3]`."""
    return colour[:, None, None, :]


def _eye(t: Mapping[str, tf.Tensor], size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws one eye, colours `[B, P, P, 3]` and how opaque it is, `[1, P, P, 1]`; the other is the same."""
    axis = _axis(-EYE_PATCH, EYE_PATCH, size)
    x, y = axis[None, None, :], axis[None, :, None]
    white = _ellipse(x, y, EYE_WIDTH, EYE_HEIGHT)
    colour = (0.98 - 0.10 * tf.nn.relu(-y / EYE_HEIGHT))[..., None] * tf.ones([1, 1, 1, 3])  # The lid's shadow.
    x, y = x - _between(t["gaze_x"], -GAZE_X, GAZE_X), y - _between(t["gaze_y"], -GAZE_Y, GAZE_Y)
    radius = tf.sqrt(x * x + y * y)
    iris = _hsv(t["iris_hue"], 0.70 + 0.3 * t["iris_saturation"], 0.60 + 0.35 * t["iris_value"])
    rim = 1.0 - 0.35 * tf.square(tf.minimum(radius / IRIS, 1.0))
    colour = _over(colour, _wide(iris) * (rim[..., None] + 0.1), _cover(radius - IRIS, size))
    colour = _over(colour, tf.constant((0.05, 0.04, 0.06)), _cover(radius - PUPIL, size))
    if size <= PLAIN_SIZE:
        return colour, _cover(white, size)
    glint = tf.sqrt(tf.square(x + 1.2 / 16) + tf.square(y + 1.2 / 16)) - GLINT
    colour = _over(colour, tf.ones([3]), _cover(glint, size))
    # The upper lid: a dark edge, thickest in the middle.
    lash = -white - 0.45 / 16 * tf.clip_by_value(-1.5 * axis / EYE_HEIGHT, -1.0, 1.0)[None, :, None]
    colour = _over(colour, tf.constant(LASHES), _cover(lash, size))
    return colour, _cover(white - 0.2 / 16, size)


def _mouth(t: Mapping[str, tf.Tensor], classes: tf.Tensor, lips: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws mouths within `MOUTH_BOX`: colours `[B, H, W, 3]` and how opaque they are, `[B, H, W, 1]`."""
    top, bottom, half = MOUTH_BOX
    x, y = _axis(-half, half, size)[None, None, :], _axis(top, bottom, size)[None, :, None]
    is_class = [(classes == label)[:, None, None] for label in range(len(EXPRESSIONS))]
    wide, bend = t["mouth_width"], t["mouth_bend"]
    y = y - _between(t["mouth_height"], 0.54, 0.58)

    # A line, by its height above the middle at x: bent down, up, or not at all; for a smirk, up at the right end.
    width = _between(wide, 0.34, 0.42)
    bends = tf.where(is_class[SMILE], _between(bend, 0.22, 0.30), tf.where(is_class[SAD], -_between(bend, 0.22, 0.30), 0.0))
    rise = tf.where(is_class[SMIRK], _between(bend, 0.18, 0.22), 0.0)
    curl = tf.where(is_class[SMIRK], _between(bend, 0.05, 0.10), 0.0)
    bends += curl
    at = x + 0.0 * y
    for _ in range(3):  # Gauss-Newton steps to the nearest point of the line.
        at = tf.minimum(tf.maximum(at, -width), width) / width
        slope = -(2 * bends * at + rise) / width
        dx, dy = x - at * width, y + bends * (at * at - 0.5) + rise * at
        at = at * width + (dx + dy * slope) / (1 + slope * slope)
    line = tf.sqrt(dx * dx + dy * dy) - _between(t["mouth_value"], 0.070, 0.085)

    # An open mouth: an ellipse, or for a laugh the part of one below a line.
    laugh = is_class[LAUGH]
    width = tf.where(laugh, _between(wide, 0.36, 0.44), _between(wide, 0.17, 0.22))
    high = tf.where(laugh, _between(bend, 0.38, 0.44), _between(bend, 0.22, 0.27))
    y = y + tf.where(laugh, 0.18, 0.0)
    edge = tf.where(laugh, 0.02 - y + 0.25 * tf.square(x), -1.0)
    hole = tf.maximum(_ellipse(x, y, width, high), edge)
    is_open = laugh | is_class[SURPRISED]
    colour = _over(_wide(lips), tf.constant(INSIDE), _cover(tf.where(is_open, hole + 0.045, 1.0), size))
    inner = tf.where(laugh, hole + 0.045, 1.0)
    if size > PLAIN_SIZE:
        tongue = tf.maximum(inner, _ellipse(x, y - high, width * 0.6, high * 0.35))
        colour = _over(colour, tf.constant(TONGUE), _cover(tongue, size))
    colour = _over(colour, tf.constant(TEETH), _cover(tf.maximum(inner, -edge - 0.12), size))
    return colour, _cover(tf.where(is_open, hole, line), size)


def _rows(size: int) -> list[int]:
    """Returns how many rows are above the eyes, at the eyes, at the mouth and below it."""
    places = (-1.0, EYE_Y - EYE_PATCH, EYE_Y + EYE_PATCH, MOUTH_BOX[1], 1.0)
    return np.diff([round((place + 1) * size / 2) for place in places]).tolist()


def _columns(patch: tf.Tensor, middles: tuple[float, ...], size: int) -> tf.Tensor:
    """Fills up a patch `[B, H, W, C]` with zeros to whole rows, in which it stands once at each of these middles."""
    width = patch.shape[2]
    parts, end = [], 0
    for middle in middles:
        start = round((middle + 1) * size / 2) - width // 2
        parts += [tf.zeros_like(patch[:, :, :1]) * tf.ones([1, 1, start - end, 1]), patch]
        end = start + width
    parts.append(tf.zeros_like(patch[:, :, :1]) * tf.ones([1, 1, size - end, 1]))
    return tf.concat(parts, axis=2)


def render(t: Mapping[str, tf.Tensor], classes: tf.Tensor, image_size: int) -> tf.Tensor:
    """Draws images, float32 `[B, image_size, image_size, 3]` in [-1, 1].

    Args:
      t: what `traits` returns.
      classes: int `[B]`, indices of `EXPRESSIONS`.
      image_size: in pixels, a multiple of 32.
    """
    size = image_size
    axis = _axis(-1, 1, size)
    x, y = axis[None, None, :], axis[None, :, None]
    skin, hair = _skin(t), _hair(t)

    # The background: two neighbouring hues, one lighter.
    angle = _between(t["ground_angle"], 0.0, 2 * np.pi)
    part = tf.clip_by_value(0.5 + 0.4 * (x * tf.cos(angle) + y * tf.sin(angle)), 0.0, 1.0)[..., None]
    saturation, value = 0.35 + 0.35 * t["ground_saturation"], 0.60 + 0.25 * t["ground_value"]
    first = _hsv(t["ground_hue"], saturation, value)
    change = (t["ground_change"] - 0.5) * 0.5
    second = _hsv(t["ground_hue"] + change, saturation * 0.8, value + 0.1 + 0.1 * t["ground_contrast"])
    image = _over(_wide(first), _wide(second), part)

    # The head: an ellipse that narrows to the chin, lit from above and darker towards its edge.
    width, height = _between(t["face_width"], 0.64, 0.78), _between(t["face_height"], 0.80, 0.90)
    down = y - _between(t["face_top"], 0.00, 0.08)
    narrow = width * (1.0 - _between(t["jaw"], 0.0, 0.25) * tf.nn.relu(down))
    face = _ellipse(x, down, narrow, height)
    round_off = tf.square(tf.nn.relu(1.0 + face * 2.2))
    light = (1.04 - 0.08 * down - 0.20 * round_off)[..., None]
    volume = _between(t["hair_volume"], 0.05, 0.13)
    # Behind the face, hair falls straight from its widest place to its length: the ears, the chin, or beyond the image.
    length = t["hair_length"]
    end = tf.where(length < 0.35, -0.15 + length, tf.where(length < 0.65, 0.05 + length, 2.0))[:, None, None]
    back = _rounded(_ellipse(x, tf.minimum(down, 0.0), width + volume, height + volume), y - end, 0.12)
    shine = (1.10 - 0.15 * tf.square(y + 0.75))[..., None]
    fine = size > PLAIN_SIZE
    image = _over(image, _wide(hair) * shine * (0.8 if fine else 1.0), _cover(back, size))
    if fine:
        ear = _ellipse(tf.abs(x) - width, y - 0.02, 0.10, 0.16)
        image = _over(image, _wide(skin) * 0.82, _cover(ear, size))
    image = _over(image, _wide(skin) * light, _cover(face, size))
    if fine:
        # Cheeks and nose, soft, and of the skin's own colour.
        cheek = tf.exp(-16.0 * (tf.square(tf.abs(x) - 0.42) + tf.square(y - 0.32)))
        cheek *= _between(t["blush"], 0.0, 0.35) * tf.clip_by_value(-8.0 * face, 0.0, 1.0)
        nose = tf.exp(-tf.square(x / 0.085) - tf.square((y - 0.19) / 0.07))
        image *= 1.0 - cheek[..., None] * tf.constant((0.0, 1.0, 0.8)) - nose[..., None] * tf.constant((0.12, 0.24, 0.24))

    # In front, hair lies on the forehead above the hairline.
    line = _between(t["hairline"], -0.62, -0.42) + _between(t["hairline_slant"], -0.22, 0.22) * x
    line += _between(t["hairline_curve"], 0.0, 0.7) * tf.square(x)
    front = tf.maximum(_ellipse(x, tf.minimum(down, 0.0), width + 0.03, height + volume), tf.maximum(y - line, y - end))
    image = _over(image, _wide(hair) * shine, _cover(front, size))

    # Mouths and eyes are drawn where they are, and laid over the rows of the image that they are in.
    above, at_eyes, at_mouth, below = tf.split(image, _rows(size), axis=1)
    colour, cover = (_columns(part, (0.0,), size) for part in _mouth(t, classes, _lips(t, skin), size))
    at_mouth = _over(at_mouth, colour, cover)
    # The eyes are opaque: where they cover a pixel, nothing of what is below is left, not even a rounding error.
    colour, cover = _eye(t, size)
    colour, cover = (_columns(part, (-EYE_X, EYE_X), size) for part in (colour * cover, cover))
    at_eyes = at_eyes * (1.0 - cover) + colour
    image = tf.concat([above, at_eyes, at_mouth, below], axis=1)
    return tf.clip_by_value(image, 0.0, 1.0) * 2.0 - 1.0


@functools.cache
def _eye_pixels(image_size: int) -> np.ndarray:
    """Returns which pixels of an eye's square are wholly within the eye, bool `[P, P]`."""
    axis = _axis(-EYE_PATCH, EYE_PATCH, image_size).numpy()
    cover = _cover(_ellipse(axis[None, :], axis[:, None], EYE_WIDTH, EYE_HEIGHT), image_size)
    return cover.numpy()[..., 0] == 1.0


def eyes(images: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the two eyes out of images `[N, S, S, 3]`: the pixels wholly within them, two arrays `[N, P, 3]`.

    Lids and skin are left out: skin is alike on both sides whatever the eyes do.
    """
    images = np.asarray(images)
    size = images.shape[1]
    inside = _eye_pixels(size)
    top, *lefts = (round((place - EYE_PATCH + 1) * size / 2) for place in (EYE_Y, -EYE_X, EYE_X))
    side = len(inside)
    left, right = (images[:, top : top + side, start : start + side][:, inside] for start in lefts)
    return left, right


def agreement(images: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> float:
    """Returns how alike the two eyes of a face are, compared with eyes of different faces: from the pixels alone.

    `1 - distance(eyes of a face) / distance(eyes of different faces)`, the distance being the mean absolute
    difference of pixels and both means being over all images, or all pairs of images of one class. 1: the
    eyes of every face are equal, as in the data. 0: no more alike than those of two faces of the class,
    which includes images without variety. It can be negative.

    Args:
      images: `[N, S, S, 3]` in [-1, 1].
      labels: int `[N]`; None: one class.
    """
    left, right = (side.reshape(len(side), -1).astype(np.float64) for side in eyes(images))
    labels = np.zeros(len(left), int) if labels is None else np.asarray(labels)
    pairs = np.abs(left - right).mean(axis=1)
    own, others = 0.0, 0.0
    for label in np.unique(labels):
        a, b = left[labels == label], right[labels == label]
        if len(a) > 1:
            total = sum(np.abs(row - b).mean(axis=1).sum() for row in a) - pairs[labels == label].sum()
            others += total / (len(a) - 1)
            own += pairs[labels == label].sum()
    return float(1.0 - own / others) if others > 1e-6 * len(left) else 0.0


class FacesSource:
    """The dataset as a source of examples by index.

    Args:
      image_size: height and width, in pixels.
      num_classes: 1 to 6; -1 or 0: six.
      seed: of what varies.

    Raises:
      UserError: if there are not so many classes.
    """

    def __init__(self, image_size: int, num_classes: int = -1, seed: int = 0):
        self.num_classes = num_classes if num_classes > 0 else len(EXPRESSIONS)
        if self.num_classes > len(EXPRESSIONS):
            raise UserError(
                f"--num_classes={num_classes}: the dataset faces has at most {len(EXPRESSIONS)} classes, an expression each."
            )
        self.image_size, self.seed = image_size, seed
        self.class_names = EXPRESSIONS[: self.num_classes]
        self.num_examples = NUM_EXAMPLES

    def examples(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the examples of these indices, `{"images", "labels"}`."""
        classes = labels(indices, self.num_classes)
        return {"images": render(traits(indices, self.seed), classes, self.image_size), "labels": classes}
