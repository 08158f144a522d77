"""A 2x resampling and the convolution beside it, computed as one strided convolution.

Nearest-neighbour upsampling repeats values and average pooling adds them up, so a convolution
next to either sees every input value, or adds every output value, more than once. Summing the
kernel's taps first gives the same function (to float32 rounding) from fewer products:

* upsample, then 3x3 convolution: with `y[o] = sum_k w[k] x[(o+k-1) // 2]` along one axis, input
  `x[i]` reaches output `o = 2i+t` through the taps `k = 1-t` and `k = 2-t`, so
  `y = conv_transpose(x, K, stride 2)` with `K[t+1] = w[1-t] + w[2-t]`, `t = -1..2`.
* 3x3 convolution, then pool: `y[i] = 1/2 sum_a sum_k w[k] x[2i+a+k-1]`, so
  `y = conv(x, K, stride 2)` with `K[t+1] = (w[t] + w[t+1]) / 2`, `t = -1..2`.
* a 1x1 convolution commutes with both, so it runs at the lower resolution.

In two dimensions a 3x3 kernel becomes the sum of the four shifts of its zero-padded self, 4x4,
and 16 products per low-resolution position replace 36. The sum is itself a product with the
constant `[16, 9]` matrix `_SUM_SHIFTS`, which reads and writes each kernel once.

All images are NHWC and kernels `[height, width, in, out]`.
"""

from typing import Any

import numpy as np
from keras import ops

__all__ = ["MIN_FUSED_DOWN", "MIN_FUSED_UP", "average_pool", "conv_average_pool", "upsample", "upsample_conv", "use_fused"]

# Below these sizes of the low-resolution feature map few positions share the summed kernel. Plain over fused time, forward and
# backward, widths of 128 px, batch 16, two CPU cores (float32, bfloat16):
#   up from    4: 1.05, 0.60    8: 1.75, 1.33    16: 2.13, 1.94    32: 2.29, 1.89    64: 2.41, 2.33
#   down to    4: 1.06, 0.92    8: 1.54, 1.32    16: 2.22, 1.78    32: 2.29, 1.82    64: 2.17, 2.28
# (`python tools/benchmark.py --parts=resampling`, 2026-11-21.) Other devices get the same rule, unmeasured.
MIN_FUSED_UP = 8
MIN_FUSED_DOWN = 8

# Along one axis each of the three taps goes to two of the four.
_SHIFTS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32)
_SUM_SHIFTS = np.kron(_SHIFTS, _SHIFTS)


def use_fused(mode: str, low_resolution: int, least: int) -> bool:
    """Returns whether to fuse: `mode` is always, never or auto (from `least` pixels up)."""
    return mode == "always" or (mode == "auto" and low_resolution >= least)


def upsample(images: Any) -> Any:
    """Nearest-neighbour upsampling: `[B, H, W, C]` to `[B, 2H, 2W, C]`."""
    # `ops.repeat` would hide the shape from TFLite, `ops.image.resize` has no gradient in XLA.
    _, height, width, channels = images.shape
    rows = ops.reshape(ops.concatenate([images, images], axis=-1), (-1, height, 1, 2 * width * channels))
    return ops.reshape(ops.concatenate([rows, rows], axis=2), (-1, 2 * height, 2 * width, channels))


def average_pool(images: Any) -> Any:
    """Average over 2x2 windows: `[B, 2H, 2W, C]` to `[B, H, W, C]`."""
    return ops.average_pool(images, 2, strides=2, padding="valid", data_format="channels_last")


def _sum_shifts(kernel, matrix):
    """Makes a 4x4 kernel of a 3x3 one: each tap is the sum of those that its row of the matrix takes."""
    _, _, inputs, outputs = kernel.shape
    summed = ops.matmul(ops.cast(matrix, kernel.dtype), ops.reshape(kernel, (9, inputs * outputs)))
    return ops.reshape(summed, (4, 4, inputs, outputs))


def upsample_conv(images: Any, kernel: Any, mode: str = "auto") -> Any:
    """`conv(upsample(images))` with zero padding: `[B, H, W, C]` to `[B, 2H, 2W, F]`.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[3, 3, C, F]` or `[1, 1, C, F]`.
      mode: auto, always or never use the fused form.
    """
    if not use_fused(mode, images.shape[1], MIN_FUSED_UP):
        return ops.conv(upsample(images), kernel, padding="same", data_format="channels_last")
    if kernel.shape[0] == 1:
        return upsample(ops.conv(images, kernel, padding="same", data_format="channels_last"))
    # The transposed convolution wants its kernel turned around: `[4, 4, F, C]`, taps from last to first.
    fused = ops.transpose(_sum_shifts(kernel, _SUM_SHIFTS[::-1]), (0, 1, 3, 2))
    return ops.conv_transpose(images, fused, strides=2, padding="same", data_format="channels_last")


def conv_average_pool(images: Any, kernel: Any, mode: str = "auto") -> Any:
    """`average_pool(conv(images))` with zero padding: `[B, 2H, 2W, C]` to `[B, H, W, F]`.

    Args:
      images: `[B, 2H, 2W, C]`.
      kernel: `[3, 3, C, F]` or `[1, 1, C, F]`.
      mode: auto, always or never use the fused form.
    """
    if not use_fused(mode, images.shape[1] // 2, MIN_FUSED_DOWN):
        return average_pool(ops.conv(images, kernel, padding="same", data_format="channels_last"))
    if kernel.shape[0] == 1:
        return ops.conv(average_pool(images), kernel, padding="same", data_format="channels_last")
    return ops.conv(images, _sum_shifts(kernel, _SUM_SHIFTS / 4), strides=2, padding="same", data_format="channels_last")
