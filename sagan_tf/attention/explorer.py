"""The explorer page: one HTML file in which anyone can ask each point of an image where it looks."""

import base64
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from sagan_tf import pixels, templates
from sagan_tf.attention.maps import Sample
from sagan_tf.errors import UserError

__all__ = ["LEVELS", "MAX_BYTES", "page", "quantize", "reduce_map"]

MAX_BYTES = 15_000_000
# Finer maps are reduced to so many queries and keys along a side: a finger points no finer, and the file stays small.
MAX_QUERIES, MAX_KEYS = 32, 16
# Steps of brightness of a stored map: the first that keeps the file within `MAX_BYTES`.
LEVELS = (255, 127, 63, 31, 15)


def page(samples: Iterable[Sample], gammas: Mapping[str, float], title: str) -> str:
    """Returns the explorer as one self-contained HTML document.

    Args:
      samples: at least one; all with maps of the same networks.
      gammas: gamma of each network in the order in which the page offers them.
      title: plain text, such as the name of the run and the step.

    Raises:
      UserError: if the samples do not fit into `MAX_BYTES` even with the coarsest maps.
    """
    shown, stored, grids, size = [], [], {}, 0
    for sample in samples:
        size = len(sample.image)
        quantized = {}
        for network in gammas:
            maps = reduce_map(sample.maps[network])
            grids[network] = maps.shape
            quantized[network] = quantize(maps)
        stored.append(quantized)
        png = base64.b64encode(pixels.png(sample.image, optimize=True)).decode()
        shown.append({"label": int(sample.label), "image": f"data:image/png;base64,{png}"})
    networks = [{"name": name, "gamma": gamma, "grid": grids[name][:2], "keys": grids[name][2:]} for name, gamma in gammas.items()]
    for levels in LEVELS:
        for entry, quantized in zip(shown, stored, strict=True):
            entry["maps"] = {name: _pack(*maps, levels) for name, maps in quantized.items()}
        contents = {"title": title, "size": size, "levels": levels, "networks": networks, "samples": shown}
        document = templates.render("attention.html", title=title, data=contents)
        if len(document.encode()) <= MAX_BYTES:
            return document
    raise UserError(
        f"{len(shown)} samples make a page of {len(document.encode()) / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}: "
        "lower --samples_per_class or name fewer --classes."
    )


def reduce_map(maps: np.ndarray) -> np.ndarray:
    """Reduces `[H, W, h, w]` to at most `MAX_QUERIES` and `MAX_KEYS` along a side: queries averaged, keys summed."""
    height, width, rows, columns = maps.shape
    q, k = max(height // MAX_QUERIES, 1), max(rows // MAX_KEYS, 1)
    if q == k == 1:
        return maps
    maps = maps.reshape(height // q, q, width // q, q, rows // k, k, columns // k, k)
    return maps.sum((5, 7)).mean((1, 3))


def quantize(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales each query's map by its maximum.

    Args:
      maps: float32 `[H, W, h, w]`.

    Returns:
      The maxima, float32 `[H, W]`, and the maps as uint8 `[H, W, h, w]`, 255 where a map is at its maximum.
    """
    peaks = maps.max((2, 3))
    return peaks.astype(np.float32), np.rint(255 * maps / peaks[..., None, None]).astype(np.uint8)


def _pack(peaks: np.ndarray, quantized: np.ndarray, levels: int) -> str:
    """Returns what the page decodes: base64 of deflated bytes, the maxima as little-endian float32, then the maps."""
    coarse = np.rint(quantized * np.float32(levels / 255)).astype(np.uint8)
    return base64.b64encode(zlib.compress(peaks.astype("<f4").tobytes() + coarse.tobytes())).decode()
