"""The fused forms against the plain ones, computed in NumPy float64; these tests run on every Keras backend."""

import numpy as np
import pytest
from keras import ops
from layers_test import conv

from sagan_tf import resampling


def inputs(kernel_size, size=6):
    rng = np.random.default_rng(kernel_size)
    return rng.standard_normal((2, size, size, 3)), rng.standard_normal((kernel_size, kernel_size, 3, 5))


@pytest.mark.parametrize("mode", ["always", "never"])
@pytest.mark.parametrize("kernel_size", [1, 3])
class FusedFormTest:
    def test_upsample_conv(self, mode, kernel_size):
        images, kernel = inputs(kernel_size)
        expected = conv(images.repeat(2, axis=1).repeat(2, axis=2), kernel)
        actual = resampling.upsample_conv(np.float32(images), ops.convert_to_tensor(np.float32(kernel)), mode)
        np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, rtol=1e-4, atol=1e-5)

    def test_conv_average_pool(self, mode, kernel_size):
        images, kernel = inputs(kernel_size)
        expected = conv(images, kernel).reshape(2, 3, 2, 3, 2, 5).mean((2, 4))
        actual = resampling.conv_average_pool(np.float32(images), ops.convert_to_tensor(np.float32(kernel)), mode)
        np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, rtol=1e-4, atol=1e-5)


class ModeTest:
    def test_auto_fuses_from_a_size_up(self):
        assert [resampling.use_fused("auto", size, 16) for size in (8, 16, 32)] == [False, True, True]
        assert resampling.use_fused("always", 4, 16)
        assert not resampling.use_fused("never", 64, 16)
