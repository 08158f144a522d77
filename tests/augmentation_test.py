"""DiffAugment against NumPy in float64; these tests run on every Keras backend."""

import keras
import numpy as np
import pytest
from keras import ops
from layers_test import gradient

from sagan_tf.augmentation import DRAWS, augment
from sagan_tf.config import Config

ALL = "color,translation,cutout"
# The ends of [0, 1) in float32.
FIRST, LAST = 0.0, 1.0 - 2.0**-24


def numbers(batch, seed=0):
    return np.random.default_rng(seed).random((batch, DRAWS), np.float32)


def pictures(batch, height=16, width=16, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


def color(image, u):
    image = image + (u[0] - 0.5)
    grey = image.mean(axis=2, keepdims=True)
    image = (image - grey) * (2 * u[1]) + grey
    return (image - image.mean()) * (u[2] + 0.5) + image.mean()


def translation(image, u):
    height, width, _ = image.shape
    tall, wide = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    down, right = int(u[3] * (2 * tall + 1)) - tall, int(u[4] * (2 * wide + 1)) - wide
    moved = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                moved[y + down, x + right] = image[y, x]
    return moved


def cutout(image, u):
    """As the paper's code does it: what would lie outside is clipped to the border."""
    height, width, _ = image.shape
    image = image.copy()
    tall, wide = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    centre = int(u[5] * (height + 1 - tall % 2)), int(u[6] * (width + 1 - wide % 2))
    for y in range(tall):
        for x in range(wide):
            image[np.clip(y + centre[0] - tall // 2, 0, height - 1), np.clip(x + centre[1] - wide // 2, 0, width - 1)] = 0
    return image


def expected(images, draws, policies):
    """DiffAugment as the paper's published code defines it, image by image, in float64."""
    functions = {"color": color, "translation": translation, "cutout": cutout}
    images = [np.float64(image) for image in images]
    for name in policies.split(",") if policies else ():
        images = [functions[name](image, np.float64(u)) for image, u in zip(images, draws, strict=True)]
    return np.stack(images)


def augmented(images, draws, policies):
    return ops.convert_to_numpy(augment(images, draws, policies))


class PolicyTest:
    @pytest.mark.parametrize("policies", ["color", "translation", "cutout", ALL, "cutout,color", ""])
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 8), (12, 21)])
    def test_values(self, policies, height, width):
        images, draws = pictures(8, height, width), numbers(8)
        actual = augmented(images, draws, policies)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected(images, draws, policies), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("policies", ["translation", "cutout"])
    def test_edges(self, policies):
        draws = np.full((9, DRAWS), 0.5, np.float32)
        corners = [(a, b) for a in (FIRST, 0.5, LAST) for b in (FIRST, 0.5, LAST)]
        draws[:, 3:5] = draws[:, 5:7] = corners
        images = pictures(9)
        np.testing.assert_array_equal(augmented(images, draws, policies), expected(images, draws, policies))

    def test_strengths_are_those_of_the_paper(self):
        """Of a flat image in which red is 0.5 above the grey and blue 0.5 below, and of one that is half black, half white."""
        colours = np.broadcast_to(np.float32([0.5, 0.0, -0.5]), (2, 16, 16, 3))
        halves = np.broadcast_to(np.float32([[-1.0], [1.0]]).repeat(8, 0)[None, None], (2, 16, 16, 1)).repeat(3, 3)
        draws = np.full((2, DRAWS), 0.5, np.float32)
        ends = np.float32([FIRST, LAST])
        for column, images, measure, wanted in (
            (0, colours, lambda x: x.mean((1, 2, 3)), (-0.5, 0.5)),
            (1, colours, lambda x: x[:, 0, 0, 0], (0.0, 1.0)),
            (2, halves, lambda x: x[:, 0, 15, 0], (0.5, 1.5)),
        ):
            changed = draws.copy()
            changed[:, column] = ends
            np.testing.assert_allclose(measure(augmented(images, changed, "color")), wanted, atol=1e-6)

    @pytest.mark.parametrize("size", [16, 32])
    def test_every_translation_up_to_an_eighth_is_as_likely(self, size):
        most, places = size // 8, 2 * (size // 8) + 1
        draws = np.zeros((places**2, DRAWS), np.float32)
        draws[:, 3:5] = (np.indices((places, places)).reshape(2, -1).T + 0.5) / places
        images = np.zeros((places**2, size, size, 1), np.float32)
        images[:, size // 2, size // 2] = 1
        found = np.argwhere(augmented(images, draws, "translation")[..., 0])[:, 1:] - size // 2
        steps = range(-most, most + 1)
        assert found.tolist() == [[down, right] for down in steps for right in steps]

    def test_cutout_has_half_the_size_and_its_centre_lies_anywhere(self):
        draws = np.zeros((17, DRAWS), np.float32)
        draws[:, 5] = (np.arange(17) + 0.5) / 17
        draws[:, 6] = 0.5
        cut = augmented(np.ones((17, 16, 16, 3), np.float32), draws, "cutout") == 0
        # Rows centre - 4 to centre + 3, of those that there are.
        assert cut.any((2, 3)).sum(1).tolist() == [4, 5, 6, 7, *[8] * 9, 7, 6, 5, 4]
        assert (cut.any((1, 3)).sum(1) == 8).all()

    def test_policies_of_an_image_do_not_share_numbers(self):
        images, draws = pictures(4), numbers(4)
        for policies, columns in (("color", (0, 1, 2)), ("translation", (3, 4)), ("cutout", (5, 6))):
            other = draws.copy()
            other[:, [column for column in range(DRAWS) if column not in columns]] = 0.9
            np.testing.assert_array_equal(augmented(images, draws, policies), augmented(images, other, policies))

    def test_half_precision_is_augmented_in_float32(self):
        images, draws = ops.cast(pictures(4), "bfloat16"), numbers(4)
        exact = ops.convert_to_numpy(ops.cast(images, "float32"))
        np.testing.assert_allclose(augmented(images, draws, ALL), expected(exact, draws, ALL), rtol=0, atol=2e-6)

    def test_takes_what_the_configuration_takes(self):
        (choices,) = (field.metadata["choices"] for field in Config.__dataclass_fields__.values() if field.name == "augment")
        for name in choices:
            assert not np.array_equal(augmented(pictures(2), numbers(2), name), pictures(2))
        with pytest.raises(ValueError, match="policies must be of color, translation, cutout, not 'flip'"):
            augment(pictures(2), numbers(2), "color,flip")

    def test_other_draws_are_refused(self):
        for draws, shape in ((numbers(1), "1, 7"), (numbers(2)[:, 1:], "2, 6")):
            with pytest.raises(ValueError, match=rf"draws must be \[2, 7\], not \[{shape}\]"):
                augment(pictures(2), draws, "color")


class GradientTest:
    @pytest.mark.parametrize("policies", ["color", "translation", "cutout", ALL])
    def test_is_that_of_the_definition(self, policies):
        """For fixed draws the result is affine, so that differences of the definition, however large, are its derivatives."""
        batch, size = 4, 8
        images, draws = pictures(batch, size, size), numbers(batch, seed=3)
        weights = np.random.default_rng(2).standard_normal(images.shape)
        wanted = np.zeros(images.shape)
        units = np.eye(images[0].size).reshape(-1, *images.shape[1:])
        for number in range(batch):
            many = draws[number : number + 1].repeat(len(units), 0)
            slopes = expected(units, many, policies) - expected(np.zeros_like(units), many, policies)
            wanted[number] = (slopes * weights[number]).sum((1, 2, 3)).reshape(images.shape[1:])
        variable = keras.Variable(images)
        actual = gradient(lambda: ops.sum(augment(variable, draws, policies) * np.float32(weights)), variable)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)
