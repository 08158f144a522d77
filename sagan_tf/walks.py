"""Walks through what a generator has learned: from sample to sample, from class to class, and under tighter bounds of z."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from sagan_tf import networks, sampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.sampling import Draws

__all__ = ["class_mixture", "interpolate_classes", "interpolate_z", "parse_bounds", "path", "slerp", "sweep_truncation"]


def interpolate_z(
    generator: keras.Model, config: Config, classes: Sequence[int], per_class: int, steps: int, draws: Draws
) -> np.ndarray:
    """Walks through the samples of each class, z by `slerp`.

    Args:
      generator: of the run.
      config: of the run.
      classes: a row each.
      per_class: samples to pass, those of `sampling.inputs`; at least 2.
      steps: frames from a sample to the next, both counted; at least 2.
      draws: of z.

    Returns:
      float32 `[len(classes), frames, H, W, 3]` in [-1, 1].
    """
    z, labels = sampling.inputs(classes, per_class, config.z_dim, draws)
    frames = path(per_class, steps)
    walks = [[slerp(stops[i], stops[i + 1], at) for i, at in frames] for stops in np.split(z.numpy(), len(classes))]
    images = sampling.generate(generator, np.concatenate(walks), np.repeat(labels[::per_class], len(frames)))
    return images.reshape(len(classes), len(frames), *images.shape[1:])


def interpolate_classes(
    generator: keras.Model, config: Config, classes: Sequence[int], per_class: int, steps: int, draws: Draws
) -> np.ndarray:
    """Walks from class to class with z held, the parameters of conditional batch norm on a straight line.

    The arguments are those of `interpolate_z`, but the generator must be conditional, `classes` are at least 2 to pass, and
    each of `per_class` samples, z number 0, 1, ... of the seed, is a row: float32 `[per_class, frames, H, W, 3]` in [-1, 1].
    """
    frames = path(len(classes), steps)
    weights = np.zeros((len(frames), config.num_classes), np.float32)
    for row, (i, at) in zip(weights, frames, strict=True):
        row[classes[i]] += 1.0 - at
        row[classes[i + 1]] += at
    z, _ = sampling.inputs([0], per_class, config.z_dim, draws)
    labels = np.tile(np.arange(len(frames)), per_class)  # One mixed class for each frame.
    images = sampling.generate(class_mixture(generator, config, weights), tf.repeat(z, len(frames), 0), labels)
    return images.reshape(per_class, len(frames), *images.shape[1:])


def sweep_truncation(
    generator: keras.Model, config: Config, classes: Sequence[int], per_class: int, bounds: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Draws the same samples under each bound of z (0: none): float32 `[len(bounds), N, H, W, 3]` in [-1, 1]."""
    z, labels = zip(*(sampling.inputs(classes, per_class, config.z_dim, Draws(seed, bound)) for bound in bounds), strict=True)
    images = sampling.generate(generator, np.concatenate(z), np.concatenate(labels))
    return images.reshape(len(bounds), -1, *images.shape[1:])


def parse_bounds(texts: Sequence[str]) -> list[float]:
    """Returns the bounds that `--truncation_sweep` means.

    Raises:
      UserError: if one is not a number from 0 on.
    """
    bounds = []
    for text in texts:
        try:
            bounds.append(float(text))
        except ValueError:
            bounds.append(-1.0)
        if not 0.0 <= bounds[-1] < np.inf:
            raise UserError(f"--truncation_sweep: {text!r} is not a bound of z: name numbers such as 2,1,0.5, or 0 for none.")
    return bounds


def path(stops: int, steps: int) -> list[tuple[int, float]]:
    """Returns the frames of a walk past all stops.

    Args:
      stops: how many, at least 2.
      steps: frames from a stop to the next, both counted, at least 2.

    Returns:
      For each of the `(stops - 1) (steps - 1) + 1` frames the stop before it, `0..stops-2`, and the fraction of the
      way to the next, exactly 0 or 1 at a stop.
    """
    frames = [divmod(k, steps - 1) for k in range((stops - 1) * (steps - 1))]
    return [(stop, part / (steps - 1)) for stop, part in frames] + [(stops - 2, 1.0)]


def slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """Interpolates z spherically: along the great circle between the directions, not through the improbable middle.

    Between two draws of a normal distribution a straight line passes points much shorter than any draw; this keeps to
    lengths that the generator was trained on. The ends are exact; parallel vectors are interpolated linearly.

    Args:
      start: `[D]`.
      end: `[D]`.
      fraction: of the way, 0 to 1.

    Returns:
      float32 `[D]`.

    Reference: White, arXiv 1609.04468.
    """
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    angle = np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))
    if np.sin(angle) < 1e-6:
        return ((1.0 - fraction) * a + fraction * b).astype(np.float32)
    return ((np.sin((1.0 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle)).astype(np.float32)


def class_mixture(generator: keras.Model, config: Config, weights: np.ndarray) -> keras.Model:
    """Returns a generator whose classes are mixtures of the given one's.

    A class is its rows in the tables of conditional batch norm (a scale and an offset per channel) and nothing else:
    those of the new class `m` are `weights[m] @ table`; every other variable is copied.

    Args:
      generator: conditional.
      config: of the generator.
      weights: `[M, num_classes]`.

    Returns:
      A generator of M classes.
    """
    mixture = networks.generator(config.replace(num_classes=len(weights)))
    norms = [norm for layer in generator.layers if isinstance(layer, networks.UpBlock) for norm in (layer.cbn_1, layer.cbn_2)]
    tables = {variable.path for norm in norms for variable in (norm.gamma, norm.beta)}
    values = {variable.path: variable.numpy() for variable in generator.variables}
    for variable in mixture.variables:
        value = values[variable.path]
        variable.assign(np.asarray(weights, np.float32) @ value if variable.path in tables else value)
    return mixture
