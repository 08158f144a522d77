"""Large numbers of samples, written as they are drawn: a folder of PNGs, or an `.npz`."""

import itertools
import os
import zipfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from sagan_tf import files, pixels
from sagan_tf.errors import UserError

__all__ = ["Batches", "write_folder", "write_npz"]

# Of uint8 images `[B, H, W, 3]` and int32 labels `[B]`, as `sampling.stream` yields them.
Batches = Iterable[tuple[np.ndarray, np.ndarray]]


def write_folder(path: str, batches: Batches, total: int) -> None:
    """Writes samples as `NUMBER_classLABEL.png`; while threads encode, the next batch is drawn.

    Args:
      path: of the directory, new or empty.
      batches: of samples.
      total: of samples, for the progress bar.

    Raises:
      UserError: if the directory holds something already.
      OSError: if it cannot be written.
    """
    files.make_dirs(path)
    if files.listing(path):
        raise UserError(f"--output={path} is not empty: name a new directory, so that it holds these images alone.")
    numbers, pending = itertools.count(), deque[Future[None]]()
    with ThreadPoolExecutor(os.cpu_count()) as pool, _bar(total) as bar:
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                name = files.join(path, f"{next(numbers):07d}_class{label:04d}.png")
                pending.append(pool.submit(lambda name, image: files.write(name, pixels.png(image), flush=False), name, image))
            while len(pending) > 4 * len(images):  # No more than a few batches wait in memory.
                pending.popleft().result()
            bar.update(len(images))
        while pending:
            pending.popleft().result()


def write_npz(path: str, batches: Batches, total: int) -> None:
    """Writes samples as arrays `images` uint8 `[N, H, W, 3]` and `labels` int32 `[N]`, never all of them in memory.

    Args:
      path: ends in `.npz`; written whole or not at all.
      batches: of samples, at least one.
      total: of samples, N.

    Raises:
      OSError: if it cannot be written.
    """
    all_labels: list[np.ndarray] = []
    # Opened for writing alone: by itself, ZipFile first opens a pipe for reading too.
    with files.whole(path) as temporary, open(temporary, "wb") as output, zipfile.ZipFile(output, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file, _bar(total) as bar:
            for images, labels in batches:
                if not all_labels:
                    shape = (total, *images.shape[1:])
                    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                file.write(images.tobytes())
                all_labels.append(labels)
                bar.update(len(images))
        with archive.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, np.concatenate(all_labels))


def _bar(total: int) -> tqdm:
    return tqdm(total=total, unit="image", disable=None)
