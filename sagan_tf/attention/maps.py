"""What the networks attend to: images with their attention maps, of a run or of an exported generator."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sagan_tf import files, networks, pixels, sampling
from sagan_tf.config import Config
from sagan_tf.data import images as image_files
from sagan_tf.errors import UserError
from sagan_tf.export import saved_model
from sagan_tf.runs.run import Run
from sagan_tf.sampling import Choice

__all__ = ["Point", "Sample", "Source", "cell", "distinct_queries", "export_source", "generated", "real", "run_source"]

AUTOMATIC_QUERIES = 5
_BATCH = 4  # Maps are large: 256 MB for one image with attention at 128 px.

# A point of an image, (x, y) in pixels from its top left corner.
Point = tuple[int, int]
# Images and maps, `[B, H, W, 3]` in [-1, 1] and `[B, H, W, h, w]`, of z `[B, z_dim]` and labels `[B]`.
Attend = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image and what the networks attend to in it.

    Attributes:
      image: uint8 `[S, S, 3]`.
      label: its class.
      maps: by network ("generator", "discriminator"), float32 `[H, W, h, w]`: for each of `H x W` queries the weights
        of `h x w` keys, which sum to 1.
    """

    image: np.ndarray
    label: int
    maps: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where samples and their maps come from.

    Attributes:
      title: the name of the run or the export, and the step.
      image_size: in pixels.
      gammas: by network, in the order in which to show them.
      samples: returns about so many samples.
      step: of the checkpoint; None: not a checkpoint.
    """

    title: str
    image_size: int
    gammas: Mapping[str, float]
    samples: Callable[[int], Iterator[Sample]]
    step: int | None = None


def run_source(run: Run, choice: Choice, images: str = "") -> Source:
    """Returns samples of a training run.

    Args:
      run: with self-attention.
      choice: which samples.
      images: real images to show instead, as `_load_images` reads them; the maps are then the discriminator's alone.

    Raises:
      UserError: if the run has no self-attention, or no such checkpoint or class.
    """
    config = run.config
    if not config.attention_resolution or config.attention_block != "attention":
        raise UserError(
            f"--model_dir={run.directory} has no self-attention (--attention_resolution={config.attention_resolution}, "
            f"--attention_block={config.attention_block}): name a run trained with it."
        )
    classes = sampling.parse_classes(choice.classes, config.num_classes)
    generator, discriminator, step, _ = run.networks(choice.checkpoint_step, choice.use_ema)

    def samples(total: int) -> Iterator[Sample]:
        if images:
            return real(discriminator, *_load_images(images, choice, config, total))
        z, labels = sampling.inputs(classes, choice.per_class(total, len(classes)), config.z_dim, choice.draws)
        attentive = networks.with_attention(generator)
        return generated(lambda z, labels: attentive([z, labels]), discriminator, z, labels)

    models = (discriminator,) if images else (generator, discriminator)
    gammas = {model.name: float(model.get_layer("attention").gamma) for model in models}
    return Source(f"{run.name}, step {step:,}", config.image_size, gammas, samples, step)


def export_source(path: str, choice: Choice) -> Source:
    """Returns samples of a SavedModel of `sagan-export`: its generator's alone.

    Args:
      path: of its directory.
      choice: which samples.

    Raises:
      UserError: if it is no such SavedModel, or has no self-attention.
    """
    exported = saved_model.load(path)
    if exported.gamma is None:
        raise UserError(f"--saved_model={path} has no attention signature: export a run that was trained with self-attention.")
    classes = sampling.parse_classes(choice.classes, exported.num_classes)

    def samples(total: int) -> Iterator[Sample]:
        z, labels = sampling.inputs(classes, choice.per_class(total, len(classes)), exported.z_dim, choice.draws)
        return generated(exported.attend, None, z, labels)

    title = files.name_of(path)
    return Source(title, exported.image_size, {"generator": exported.gamma}, samples)


def generated(attend: Attend, discriminator: keras.Model | None, z: tf.Tensor, labels: np.ndarray) -> Iterator[Sample]:
    """Yields generated images with the generator's maps and, if there is one, the discriminator's on the same images.

    Args:
      attend: returns images and maps of z and labels, as `networks.with_attention`.
      discriminator: with self-attention, or None.
      z: float32 `[N, z_dim]`.
      labels: int `[N]`.
    """
    judge = networks.with_attention(discriminator) if discriminator else None

    def run(z: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, maps = attend(z, labels)
        return (images, maps, judge([images, labels])[1]) if judge else (images, maps)

    return _samples(run, ("generator", "discriminator") if judge else ("generator",), z, labels)


def real(discriminator: keras.Model, images: np.ndarray, labels: np.ndarray) -> Iterator[Sample]:
    """Yields given images with the discriminator's maps; its maps do not depend on the labels.

    Args:
      discriminator: with self-attention.
      images: uint8 `[N, S, S, 3]`.
      labels: int `[N]`.
    """
    judge = networks.with_attention(discriminator)

    def run(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return images, judge([images, labels])[1]

    return _samples(run, ("discriminator",), pixels.from_uint8(images), labels)


def _samples(run: Callable[..., Sequence[tf.Tensor]], names: Sequence[str], first: Any, labels: Any) -> Iterator[Sample]:
    """Yields samples of a function that returns images and the maps of each named network."""
    rows = tf.convert_to_tensor(first), tf.convert_to_tensor(labels, tf.int32)
    for batch in sampling.map_rows(lambda x, y: (y, *run(x, y)), *rows, batch_size=_BATCH):
        batch_labels, images, *maps = (output.numpy() for output in batch)
        for label, image, *each in zip(batch_labels, pixels.to_uint8(images), *maps, strict=True):
            yield Sample(image, int(label), dict(zip(names, each, strict=True)))


def _load_images(path: str, choice: Choice, config: Config, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads real images, cropped and resized as for training.

    Args:
      path: an image, or a folder of images: a subfolder per class, or flat.
      choice: its classes, with class folders, are those to take; else one, the label of all. None: the first ten, or class 0.
      config: of the run.
      total: about so many images to take, the first of each class in order of name.

    Returns:
      uint8 `[N, S, S, 3]` and labels int `[N]`.

    Raises:
      UserError: if the path is missing, holds no such images, or one cannot be read.
    """
    if not os.path.exists(path):
        raise UserError(f"--images={path} does not exist: name an image or a folder of images.")
    paths, labels = [path], [0]
    names: tuple[str, ...] = ()
    if os.path.isdir(path):
        try:
            paths, labels, names = image_files.list_folder(path)
        except ValueError as error:
            raise UserError(f"--images: {error}") from error
    if len(names) > max(config.num_classes, 1):
        raise UserError(
            f"--images={path} holds {len(names)} class folders, the model knows {max(config.num_classes, 1)} classes: "
            "name one of the folders."
        )
    classes = sampling.parse_classes(choice.classes, config.num_classes) if choice.classes else []
    if classes and not names:
        if len(classes) > 1:
            raise UserError(f"--images={path} has no class folders: give --classes one number, the label of its images.")
        labels = [classes[0]] * len(paths)
    of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        of_class.setdefault(label, []).append(i)
    wanted = classes or sorted(of_class)[: sampling.GRID_CLASSES]
    per_class = choice.per_class(total, len(wanted))
    chosen = [i for label in wanted for i in of_class.get(label, [])[:per_class]]
    if not chosen:
        raise UserError(f"--images={path} holds no image of --classes={','.join(map(str, wanted))}: leave the flag out for all.")
    images = []
    for i in chosen:
        try:
            images.append(image_files.preprocess(paths[i], config.image_size))
        except image_files.DECODE_ERRORS as error:
            raise UserError(f"{paths[i]} cannot be read as an image ({error}): remove it or make it again.") from error
    return np.stack(images), np.array([labels[i] for i in chosen])


def cell(point: Point, image_size: int, maps: np.ndarray) -> tuple[int, int]:
    """Returns row and column of the query of `maps`, `[H, W, h, w]`, in which a pixel lies."""
    x, y = point
    return y * maps.shape[0] // image_size, x * maps.shape[1] // image_size


def distinct_queries(maps: np.ndarray, image_size: int, count: int = AUTOMATIC_QUERIES) -> list[Point]:
    """Spreads query points over the most distinct maps.

    The first is the query whose map is farthest from the mean of all; each next one that which is farthest from the
    nearest of those chosen (greedy farthest-point). Distance is the sum of absolute differences of two maps, in units
    of the first one's from the mean, and half the distance in the image, in units of its height; so that points do not
    crowd, it is 0 below an eighth of the image.

    Args:
      maps: `[H, W, h, w]`.
      image_size: of the image, in pixels.
      count: of points, at most `H * W`.

    Returns:
      Different points, each at the centre of a query's cell.
    """
    height, width = maps.shape[:2]
    flat = maps.reshape(height * width, -1)
    positions = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2) / height

    def apart(other):
        return np.abs(flat - other).sum(1)

    from_mean = apart(flat.mean(0))
    chosen, unit = [int(from_mean.argmax())], max(from_mean.max(), 1e-3)  # Differences below are rounding.

    def distance(i):
        away = np.sqrt(((positions - positions[i]) ** 2).sum(1))
        return np.where(away < 1 / 8, 0.0, apart(flat[i]) / unit + 0.5 * away)

    nearest = distance(chosen[0])
    while len(chosen) < min(count, len(flat)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return [
        ((2 * (i % width) + 1) * image_size // (2 * width), (2 * (i // width) + 1) * image_size // (2 * height)) for i in chosen
    ]
