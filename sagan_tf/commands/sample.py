"""`sagan-sample`: draws images from a trained generator, and shows how they lie in its latent space and to the data."""

import os
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from sagan_tf import data, networks, pixels, sampling
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.metrics import classifiers
from sagan_tf.metrics.classifiers import Classifier
from sagan_tf.runs import distribution
from sagan_tf.runs.checkpoints import restore

FLAGS = flags.FLAGS

STRIP_STEPS, ANIMATION_STEPS = 8, 24
_ANIMATIONS = (".gif", ".webp")
_BATCH = 64


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string(
        "output",
        "",
        "Where to: FILE.png for one grid, a class per row; else a directory of separate PNGs. --interpolate writes .png, .gif "
        "or .webp; --num_images a directory or .npz.",
    )
    flags.DEFINE_list("classes", [], "Classes to draw, comma-separated numbers; empty: the first ten (--num_images: all).")
    flags.DEFINE_integer(
        "samples_per_class",
        0,
        f"Images of each class; 0: {sampling.GRID_COLUMNS}, but 2 to walk between with --interpolate=z, and about "
        f"{sampling.GRID_COLUMNS} in all with --truncation_sweep and --neighbours.",
        lower_bound=0,
    )
    cli.define_z_flags()
    flags.DEFINE_enum(
        "interpolate",
        None,
        ["z", "classes"],
        "Walk from sample to sample of each class, z on a great circle; or from class to class with z held, the parameters "
        "of conditional batch norm on a straight line.",
    )
    flags.DEFINE_integer(
        "steps",
        0,
        "With --interpolate: images from one end to the next, both counted; "
        f"0: {STRIP_STEPS} in a strip, {ANIMATION_STEPS} in an animation.",
        lower_bound=0,
    )
    flags.DEFINE_list("truncation_sweep", [], "Draw the same samples under each of these bounds of z, a row each; 0: no bound.")
    flags.DEFINE_integer(
        "neighbours",
        0,
        "Show so many of the nearest training images of each sample, by pixels and by features of --classifier.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "num_images",
        0,
        "Draw so many images, classes in turn, into a new directory or an .npz of uint8 images and int32 labels: those that "
        "sagan-evaluate measures.",
        lower_bound=0,
    )
    cli.define_checkpoint_flags()


def parse_classes(names: list[str], config: Config) -> list[int]:
    """Returns the class numbers meant by `--classes`.

    Raises:
      UserError: if one is not a number, or out of range.
    """
    if not names:
        return list(range(min(config.num_classes or 1, sampling.GRID_CLASSES)))
    for name in names:
        if not name.strip().isdigit() or int(name) >= max(config.num_classes, 1):
            raise UserError(f"--classes: {name!r} is not a class; they are 0 to {max(config.num_classes, 1) - 1}.")
    return [int(name) for name in names]


def parse_bounds(texts: list[str]) -> list[float]:
    """Returns the bounds meant by `--truncation_sweep`.

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


def inputs(
    classes: Sequence[int], per_class: int, z_dim: int, seed: int = 0, truncation: float = 0.0
) -> tuple[tf.Tensor, np.ndarray]:
    """Returns z `[N, z_dim]` and labels `[N]` of `per_class` samples of each class, class by class."""
    labels = np.repeat(classes, per_class)
    return sampling.draw_z(tf.range(len(labels)), z_dim, seed, truncation), labels


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
    a, b = np.float64(start), np.float64(end)
    angle = np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))
    if np.sin(angle) < 1e-6:
        return np.float32((1.0 - fraction) * a + fraction * b)
    return np.float32((np.sin((1.0 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle))


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
        variable.assign(np.float32(weights) @ value if variable.path in tables else value)
    return mixture


def interpolate_z(
    generator: keras.Model,
    config: Config,
    classes: Sequence[int],
    per_class: int,
    steps: int,
    seed: int = 0,
    truncation: float = 0.0,
) -> np.ndarray:
    """Walks through the samples of each class, z by `slerp`.

    Args:
      generator: of the run.
      config: of the run.
      classes: a row each.
      per_class: samples to pass, those of `inputs`; at least 2.
      steps: frames from a sample to the next, both counted; at least 2.
      seed: of z.
      truncation: bound of the samples' z; 0: none.

    Returns:
      `[len(classes), frames, H, W, 3]` in [-1, 1].
    """
    z, labels = inputs(classes, per_class, config.z_dim, seed, truncation)
    frames = path(per_class, steps)
    walks = [[slerp(stops[i], stops[i + 1], at) for i, at in frames] for stops in np.split(z.numpy(), len(classes))]
    images = sampling.generate(generator, np.concatenate(walks), np.repeat(labels[::per_class], len(frames)))
    return images.reshape(len(classes), len(frames), *images.shape[1:])


def interpolate_classes(
    generator: keras.Model,
    config: Config,
    classes: Sequence[int],
    per_class: int,
    steps: int,
    seed: int = 0,
    truncation: float = 0.0,
) -> np.ndarray:
    """Walks from class to class with z held, the parameters of conditional batch norm on a straight line.

    Args:
      generator: of the run, conditional.
      config: of the run.
      classes: to pass, at least 2.
      per_class: samples, a row each: z number 0, 1, ... of the seed.
      steps: frames from a class to the next, both counted; at least 2.
      seed: of z.
      truncation: bound of z; 0: none.

    Returns:
      `[per_class, frames, H, W, 3]` in [-1, 1].
    """
    frames = path(len(classes), steps)
    weights = np.zeros((len(frames), config.num_classes), np.float32)
    for row, (i, at) in zip(weights, frames, strict=True):
        row[classes[i]] += 1.0 - at
        row[classes[i + 1]] += at
    z, _ = inputs([0], per_class, config.z_dim, seed, truncation)
    labels = np.tile(np.arange(len(frames)), per_class)  # One mixed class for each frame.
    images = sampling.generate(class_mixture(generator, config, weights), tf.repeat(z, len(frames), 0), labels)
    return images.reshape(per_class, len(frames), *images.shape[1:])


def sweep_truncation(
    generator: keras.Model, config: Config, classes: Sequence[int], per_class: int, bounds: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Draws the same samples under each bound of z (0: none): `[len(bounds), N, H, W, 3]` in [-1, 1]."""
    rows = [inputs(classes, per_class, config.z_dim, seed, bound) for bound in bounds]
    return np.stack([sampling.generate(generator, *row) for row in rows])


class Nearest:
    """The nearest of any number of vectors to each of some queries, seen batch by batch.

    Args:
      queries: `[N, D]`.
      count: K, how many to keep.

    Attributes:
      indices: int64 `[N, <=K]`, numbers of the vectors in the order of `add`, the nearest first; of equals the earlier.
      squares: float64 `[N, <=K]`, their squared Euclidean distances; exact for whole numbers such as pixels.
    """

    def __init__(self, queries: np.ndarray, count: int):
        self._queries = np.float64(queries)
        self._count = count
        self._seen = 0
        self.indices = np.zeros((len(queries), 0), np.int64)
        self.squares = np.zeros((len(queries), 0))

    def add(self, vectors: np.ndarray) -> None:
        """Takes the next vectors, `[B, D]`."""
        x, y = self._queries, np.float64(vectors)
        squares = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2.0 * x @ y.T, 0.0)  # [N, B]
        numbers = np.broadcast_to(self._seen + np.arange(len(y)), squares.shape)
        squares, numbers = (np.concatenate(pair, 1) for pair in ((self.squares, squares), (self.indices, numbers)))
        order = np.argsort(squares, axis=1, kind="stable")[:, : self._count]
        self.squares, self.indices = (np.take_along_axis(each, order, 1) for each in (squares, numbers))
        self._seen += len(y)


def nearest_neighbours(images: np.ndarray, source: data.Source, classifier: Classifier, count: int) -> tuple[Nearest, Nearest]:
    """Returns the nearest training images, in one pass over the data: by pixels, and by the classifier's features.

    Args:
      images: uint8 `[N, H, W, 3]`; pixels are compared as they are stored, 0..255.
      source: of the training images; numbers are its indices.
      classifier: whose features count.
      count: how many of each.
    """
    parts = [classifier.run(tf.constant(np.float32(images[i : i + _BATCH]) / 127.5 - 1.0)) for i in range(0, len(images), _BATCH)]
    by_pixels = Nearest(images.reshape(len(images), -1), count)
    by_features = Nearest(np.concatenate([pool.numpy() for _, pool in parts]), count)
    with tqdm(total=source.num_examples, desc="training images", unit="image", disable=None, leave=False) as bar:
        for batch in data.eval_dataset(source, _BATCH):
            real = pixels.to_uint8(batch["images"])
            by_pixels.add(real.reshape(len(real), -1))
            by_features.add(classifier.run(batch["images"])[1].numpy())
            bar.update(len(real))
    return by_pixels, by_features


def neighbours_sheet(
    images: np.ndarray, labels: Sequence[int], source: data.Source, by_pixels: Nearest, by_features: Nearest
) -> np.ndarray:
    """Draws each sample with its neighbours, a row each; below a neighbour its index and distance.

    The distance of pixels is their root mean square difference, 0 to 255; that of features is Euclidean.
    """
    scale = np.prod(images.shape[1:])
    rows, captions = [], []
    for i, image in enumerate(images):
        found = np.concatenate([by_pixels.indices[i], by_features.indices[i]])
        distances = np.sqrt(np.concatenate([by_pixels.squares[i] / scale, by_features.squares[i]]))
        rows.append([image, *pixels.to_uint8(source.examples(tf.constant(found))["images"])])
        captions.append(["", *(f"#{index}\n{distance:.4g}" for index, distance in zip(found, distances, strict=True))])
    count = by_pixels.indices.shape[1]
    heads = ["sample", *(f"{name} {n}" for name in ("pixels", "features") for n in range(1, count + 1))]
    return pixels.table(rows, [f"class {label}" for label in labels], heads, captions)


def stream(
    generator: keras.Model,
    z_dim: int,
    classes: Sequence[int],
    count: int,
    seed: int = 0,
    truncation: float = 0.0,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields any number of samples in batches, the classes in turn: sample `n` is a function of (seed, n).

    Args:
      generator: with a strategy, made in its scope.
      z_dim: dimensions of z.
      classes: that take turns.
      count: samples in all.
      seed: of z.
      truncation: bound of z; 0: none.
      strategy: whose replicas share the work; None: the current one.

    Yields:
      uint8 images `[B, H, W, 3]` and int32 labels `[B]`.
    """
    strategy = strategy or tf.distribute.get_strategy()
    whole = _BATCH * strategy.num_replicas_in_sync

    @tf.function
    def run(first):
        def on_replica():
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
            numbers = first + replica * _BATCH + tf.range(_BATCH, dtype=tf.int64)
            labels = tf.gather(tf.constant(classes, tf.int32), numbers % len(classes))
            images = generator([sampling.draw_z(numbers, z_dim, seed, truncation), labels], training=False)
            return pixels.quantize(images), labels

        return [strategy.gather(output, axis=0) for output in strategy.run(on_replica)]

    for first in range(0, count, whole):
        # Always a whole batch, so that there is one graph; what is too many is cut off.
        images, labels = run(tf.constant(first, tf.int64))
        yield images.numpy()[: count - first], labels.numpy()[: count - first]


def write_folder(path: str, batches: Iterable[tuple[np.ndarray, np.ndarray]], total: int) -> None:
    """Writes samples as `NUMBER_classLABEL.png`; while threads encode, the next batch is drawn.

    Args:
      path: of the directory, new or empty.
      batches: of `stream`.
      total: of samples, for the progress bar.

    Raises:
      UserError: if the directory holds something already.
    """
    os.makedirs(path, exist_ok=True)
    if os.listdir(path):
        raise UserError(f"--output={path} is not empty: name a new directory, so that it holds these images alone.")
    number, pending = 0, deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool, _bar(total) as bar:
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                name = os.path.join(path, f"{number:07d}_class{label:04d}.png")
                pending.append(pool.submit(pixels.save_png, name, image))
                number += 1
            while len(pending) > 4 * len(images):  # No more than a few batches wait in memory.
                pending.popleft().result()
            bar.update(len(images))
        while pending:
            pending.popleft().result()


def write_npz(path: str, batches: Iterable[tuple[np.ndarray, np.ndarray]], total: int, image_size: int) -> None:
    """Writes samples as arrays `images` uint8 `[N, H, W, 3]` and `labels` int32 `[N]`, never all of them in memory.

    Args:
      path: ends in `.npz`; written whole or not at all.
      batches: of `stream`.
      total: of samples, N.
      image_size: H and W.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f"{path}.tmp"
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, image_size, image_size, 3)}
    all_labels = []
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("images.npy", "w", force_zip64=True) as file, _bar(total) as bar:
                np.lib.format.write_array_header_1_0(file, header)
                for images, labels in batches:
                    file.write(images.tobytes())
                    all_labels.append(labels)
                    bar.update(len(images))
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, np.concatenate(all_labels))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def _bar(total: int) -> tqdm:
    return tqdm(total=total, unit="image", disable=None)


def _mode() -> str:
    """Returns which of the modes the flags ask for, after checking that they agree; empty: plain samples.

    Raises:
      UserError: if they do not agree with each other, or with the suffix of `--output`.
    """
    if not FLAGS.output:
        raise UserError("--output is missing: name a .png file for a grid, or a directory for separate images.")
    modes = [name for name in ("interpolate", "truncation_sweep", "neighbours", "num_images") if getattr(FLAGS, name)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} exclude each other: choose one.")
    mode = modes[0] if modes else ""
    if FLAGS.steps and mode != "interpolate":
        raise UserError("--steps is for --interpolate: add it, or leave --steps out.")
    if FLAGS.steps == 1:
        raise UserError("--steps=1 has no way to go: both ends are counted, so take 2 or more.")
    if mode == "truncation_sweep" and FLAGS.truncation:
        raise UserError("--truncation and --truncation_sweep exclude each other: choose one.")
    if mode == "num_images" and FLAGS.samples_per_class:
        raise UserError("--num_images and --samples_per_class exclude each other: choose one.")
    suffix = os.path.splitext(FLAGS.output)[1].lower()
    allowed = {
        "interpolate": ((".png", *_ANIMATIONS), "a .png, .gif or .webp file"),
        "truncation_sweep": ((".png",), "a .png file"),
        "neighbours": ((".png",), "a .png file"),
    }
    if mode in allowed and suffix not in allowed[mode][0]:
        raise UserError(f"--output={FLAGS.output}, but --{mode} writes {allowed[mode][1]}: name one.")
    if mode == "num_images" and suffix in (".png", *_ANIMATIONS):
        raise UserError(f"--output={FLAGS.output}, but --num_images writes a directory or an .npz file: name one.")
    if not mode and suffix in (".npz", *_ANIMATIONS):
        needed = "--num_images" if suffix == ".npz" else "--interpolate"
        raise UserError(f"--output={FLAGS.output} goes with {needed}: add that flag, or name a .png file or a directory.")
    return mode


def _save_png(image: np.ndarray) -> None:
    with writing("output", FLAGS.output):
        pixels.save_png(FLAGS.output, image)


def _samples(config: Config, classes: list[int], per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples of the flags: images `[N, H, W, 3]` in [-1, 1], and labels `[N]`."""
    generator, _ = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    z, labels = inputs(classes, per_class, config.z_dim, FLAGS.sample_seed, FLAGS.truncation)
    return sampling.generate(generator, z, labels), labels


def _plain(config: Config, classes: list[int]) -> str:
    per_class = FLAGS.samples_per_class or sampling.GRID_COLUMNS
    images, labels = _samples(config, classes, per_class)
    if FLAGS.output.lower().endswith(".png"):
        _save_png(pixels.grid(images, per_class))
        return f"{len(images)} images, a class per row, in {FLAGS.output}"
    with writing("output", FLAGS.output):
        for index, (image, label) in enumerate(zip(pixels.to_uint8(images), labels, strict=True)):
            pixels.save_png(os.path.join(FLAGS.output, f"class{label:04d}_{index % per_class:06d}.png"), image)
    return f"{len(images)} images in {FLAGS.output}"


def _interpolation(config: Config, classes: list[int]) -> str:
    animated = FLAGS.output.lower().endswith(_ANIMATIONS)
    steps = FLAGS.steps or (ANIMATION_STEPS if animated else STRIP_STEPS)
    if FLAGS.interpolate == "classes":
        if not config.num_classes:
            raise UserError(f"--model_dir={config.model_dir} has no classes to walk between: use --interpolate=z.")
        if len(classes) < 2:
            raise UserError(f"--classes={classes[0]} is one class: name at least two to walk between.")
        draw, per_class = interpolate_classes, FLAGS.samples_per_class or sampling.GRID_COLUMNS
    else:
        draw, per_class = interpolate_z, FLAGS.samples_per_class or 2
        if per_class < 2:
            raise UserError("--samples_per_class=1 leaves nothing to walk to: take 2 or more with --interpolate=z.")
    generator, _ = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    walks = draw(generator, config, classes, per_class, steps, FLAGS.sample_seed, FLAGS.truncation)
    rows, count = walks.shape[:2]
    if animated:
        columns = int(np.ceil(np.sqrt(rows)))
        frames = [pixels.grid(walks[:, k], columns) for k in range(count)]
        frames += frames[-2:0:-1]  # And back again, so that it goes on without a jump.
        with writing("output", FLAGS.output):
            pixels.save_animation(FLAGS.output, frames)
        return f"{rows} walks of {count} frames, and back, in {FLAGS.output}"
    _save_png(pixels.grid(walks.reshape(rows * count, *walks.shape[2:]), count))
    return f"{rows} walks of {count} images, one per row, in {FLAGS.output}"


def _few_per_class(classes: list[int]) -> int:
    return FLAGS.samples_per_class or max(sampling.GRID_COLUMNS // len(classes), 1)


def _sweep(config: Config, classes: list[int]) -> str:
    bounds = parse_bounds(FLAGS.truncation_sweep)
    generator, _ = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    images = sweep_truncation(generator, config, classes, _few_per_class(classes), bounds, FLAGS.sample_seed)
    names = [f"|z| < {bound:g}" if bound else "no bound" for bound in bounds]
    _save_png(pixels.table(pixels.to_uint8(images), names))
    return f"{images.shape[1]} samples under {len(bounds)} bounds of z, one per row, in {FLAGS.output}"


def _neighbours(config: Config, classes: list[int]) -> str:
    source = data.open_source(config)
    if FLAGS.neighbours > source.num_examples:
        raise UserError(f"--neighbours={FLAGS.neighbours}, but the dataset has {source.num_examples} images: ask for fewer.")
    classifier = classifiers.of(config)
    images, labels = _samples(config, classes, _few_per_class(classes))
    images = pixels.to_uint8(images)
    try:
        found = nearest_neighbours(images, source, classifier, FLAGS.neighbours)
        sheet = neighbours_sheet(images, labels, source, *found)
    except tf.errors.OpError as error:
        raise data.user_error(error) or error from error
    _save_png(sheet)
    return (
        f"The nearest {FLAGS.neighbours} of {source.num_examples:,} training images to {len(images)} samples in {FLAGS.output}: by "
        f"pixels (root mean square difference of 0..255), and by features of the classifier {classifier.name} (Euclidean)"
    )


def _many(config: Config, classes: list[int]) -> str:
    if config.distribution == "multi_worker":  # The training's cluster: one machine draws.
        config = config.replace(distribution="auto")
    if not FLAGS.classes:
        classes = list(range(max(config.num_classes, 1)))
    strategy = distribution.replicas(config)
    with strategy.scope():
        generator, _ = restore(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)
    total = FLAGS.num_images
    batches = stream(generator, config.z_dim, classes, total, FLAGS.sample_seed, FLAGS.truncation, strategy)
    with writing("output", FLAGS.output):
        if FLAGS.output.lower().endswith(".npz"):
            write_npz(FLAGS.output, batches, total, config.image_size)
        else:
            write_folder(FLAGS.output, batches, total)
    return f"{total:,} images in {FLAGS.output}"


def main() -> None:
    """Draws images from a trained generator, as one grid or as separate files; or shows how they vary.

    sagan-sample --model_dir=DIR --output=grid.png
    sagan-sample --model_dir=DIR --output=images/ --classes=0,3 --samples_per_class=100 --truncation=1.0
    sagan-sample --model_dir=DIR --output=samples.npz --num_images=50000
    sagan-sample --model_dir=DIR --output=walk.gif --interpolate=z
    sagan-sample --model_dir=DIR --output=classes.png --interpolate=classes --classes=0,3,5
    sagan-sample --model_dir=DIR --output=sweep.png --truncation_sweep=2,1,0.5
    sagan-sample --model_dir=DIR --output=neighbours.png --neighbours=4 --classifier=embedded
    """
    draw = {
        "": _plain,
        "interpolate": _interpolation,
        "truncation_sweep": _sweep,
        "neighbours": _neighbours,
        "num_images": _many,
    }[_mode()]
    config = cli.trained_config()
    classes = parse_classes(FLAGS.classes, config)
    with writing("output", FLAGS.output):  # What cannot be written is refused before it is drawn.
        os.makedirs(os.path.dirname(os.path.abspath(FLAGS.output)), exist_ok=True)
    print(draw(config, classes))


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
