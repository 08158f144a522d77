"""`sagan-attention`: shows what each point of an image attends to, as a figure or as a page to explore."""

import dataclasses
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging
from PIL import Image, ImageDraw, ImageFont

from sagan_tf import config as config_lib
from sagan_tf import networks, pixels, sampling
from sagan_tf.attention import explorer
from sagan_tf.attention.explorer import Sample
from sagan_tf.commands import cli
from sagan_tf.commands.sample import inputs, parse_classes
from sagan_tf.config import Config
from sagan_tf.data import images as image_files
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.runs.checkpoints import restore_with_step, write_file

FLAGS = flags.FLAGS

FIGURE_SAMPLES = 10
PAGE_SAMPLES = 36
AUTOMATIC_QUERIES = 5
# One for each query, told apart on dimmed grey.
COLOURS = (
    (255, 92, 82),
    (72, 196, 255),
    (255, 218, 40),
    (110, 236, 120),
    (236, 130, 252),
    (255, 158, 44),
    (40, 226, 190),
    (160, 168, 255),
)
# Under a map the image keeps so much of its colour and brightness; at its maximum a map covers it so far.
SATURATION, BRIGHTNESS, OPACITY = 0.2, 0.5, 0.85
_TILE, _PADDING, _FONT_SIZE = 160, 10, 14
_BATCH = 4  # Maps are large: 256 MB for one image with attention at 128 px.

# A point of an image, (x, y) in pixels from its top left corner.
Point = tuple[int, int]


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("output", "", "FILE.png for a figure: images with query points, and where each point looks.")
    flags.DEFINE_string("html", "", "FILE.html for a page to explore with mouse, finger or keyboard, all in this one file.")
    flags.DEFINE_string("queries", "", "Points of the figure in image pixels, x,y;x,y; empty: those with the most distinct maps.")
    flags.DEFINE_string("images", "", "Image or folder of images: show the discriminator's attention on these.")
    flags.DEFINE_string("saved_model", "", "Directory of a SavedModel of sagan-export, in place of --model_dir.")
    flags.DEFINE_list(
        "classes",
        [],
        "Classes to draw, comma-separated numbers; empty: the first ten. Of --images without class folders: the label.",
    )
    flags.DEFINE_integer(
        "samples_per_class",
        0,
        f"Images of each class; 0: so many that a figure holds about {FIGURE_SAMPLES}, a page {PAGE_SAMPLES}.",
        lower_bound=0,
    )
    cli.define_z_flags()
    cli.define_checkpoint_flags()


def parse_queries(text: str, image_size: int) -> list[Point]:
    """Returns the points meant by `--queries`; none if it is empty.

    Raises:
      UserError: if it is malformed, a point is outside the image, or there are more points than colours.
    """
    points = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = re.fullmatch(r"(-?\d+)\s*,\s*(-?\d+)", part)
        if not match:
            raise UserError(f"--queries: {part!r} is not a point: write x,y in pixels, and ; between points, as in 8,8;20,12.")
        point = (int(match[1]), int(match[2]))
        if not all(0 <= value < image_size for value in point):
            raise UserError(f"--queries: {part!r} is outside the image: x and y are 0 to {image_size - 1}.")
        points.append(point)
    if len(points) > len(COLOURS):
        raise UserError(f"--queries names {len(points)} points: a figure shows at most {len(COLOURS)}.")
    return points


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


def overlay(image: np.ndarray, weights: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """Lays a map over an image: the image pale and dim, the more of the colour the larger the weight.

    Args:
      image: uint8 `[S, S, 3]`.
      weights: one query's map, `[h, w]`; brightness is relative to its maximum, bilinear between the keys.
      colour: red, green, blue, 0..255.

    Returns:
      uint8 `[S, S, 3]`.
    """
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32))
    alpha = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))[..., None] * OPACITY
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
    pale = BRIGHTNESS * (SATURATION * image + (1 - SATURATION) * grey)
    return np.rint(pale * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(np.uint8)


def figure(samples: Iterable[Sample], network: str, heading: str, queries: Sequence[Point] = ()) -> np.ndarray:
    """Draws samples, one per row: the image with its query points, then for each point where it looks.

    Args:
      samples: at least one.
      network: whose maps to draw.
      heading: the first line.
      queries: at most `len(COLOURS)` points in image pixels, the same in every image; none: `distinct_queries` of each.

    Returns:
      uint8 `[height, width, 3]`.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    line = _FONT_SIZE + 6
    rows = [_figure_row(sample, sample.maps[network], queries, font) for sample in samples]
    width = rows[0].width
    explanation = (
        "Left: the image and its query points. Then, for each point: where it looks, the brighter the more "
        "(each tile relative to its own maximum). Below a tile: its largest weight, in multiples of an even share; "
        "at 1.0x a point looks everywhere alike."
    )
    columns = int((width - 2 * _PADDING) / (font.getlength(explanation) / len(explanation)))
    title = textwrap.wrap(heading, columns)
    lines = title + textwrap.wrap(explanation, columns)
    sheet = Image.new("RGB", (width, line * len(lines) + 2 * _PADDING + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(lines):
        draw.text((_PADDING, _PADDING + number * line), text, (0, 0, 0) if number < len(title) else (90, 90, 90), font)
    top = 2 * _PADDING + line * len(lines)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return np.asarray(sheet)


def _figure_row(sample: Sample, maps: np.ndarray, queries: Sequence[Point], font) -> Image.Image:
    size = len(sample.image)
    factor = -(-_TILE // size)
    side = factor * size
    points = queries or distinct_queries(maps, size)
    row = Image.new("RGB", (_PADDING + (1 + len(points)) * (side + _PADDING), side + _FONT_SIZE + 2 * _PADDING), "white")
    draw = ImageDraw.Draw(row)
    image = np.asarray(Image.fromarray(sample.image).resize((side, side), Image.Resampling.NEAREST))
    row.paste(Image.fromarray(image), (_PADDING, 0))
    draw.rectangle((_PADDING - 1, -1, _PADDING + side, side), outline=(200, 200, 200))
    draw.text((_PADDING, side + 4), f"class {sample.label}", (0, 0, 0), font)
    for number, (point, colour) in enumerate(zip(points, COLOURS, strict=False), start=1):
        i, j = cell(point, size, maps)
        left = _PADDING + number * (side + _PADDING)
        row.paste(Image.fromarray(overlay(image, maps[i, j], colour)), (left, 0))
        # A dot stands in the middle of the cell that is asked, but whole inside the image.
        x, y = (min(max(at, 11), side - 11) for at in ((j + 0.5) * side / maps.shape[1], (i + 0.5) * side / maps.shape[0]))
        draw.circle((left + x, y), 6, outline=(0, 0, 0), width=4)
        draw.circle((left + x, y), 5, outline=(255, 255, 255), width=2)
        for centre in ((_PADDING + x, y), (left + 10, side + 13)):
            draw.circle(centre, 9, fill=colour, outline=(0, 0, 0), width=1)
            draw.text(centre, str(number), (0, 0, 0), font, anchor="mm")
        peak = maps[i, j].max() * maps[i, j].size
        draw.text((left + 25, side + 4), f"{peak:.1f}x", (0, 0, 0), font)
    return row


def generated(attend, discriminator: "keras.Model | None", z: tf.Tensor, labels: np.ndarray) -> Iterator[Sample]:
    """Yields generated images with the generator's maps and, if there is one, the discriminator's on the same images.

    Args:
      attend: a function of z `[B, z_dim]` and labels `[B]` that returns images and maps, as `networks.with_attention`.
      discriminator: with self-attention, or None.
      z: float32 `[N, z_dim]`.
      labels: int `[N]`.
    """
    judge = networks.with_attention(discriminator) if discriminator else None

    @tf.function(reduce_retracing=True)
    def run(z, labels):
        images, maps = attend(z, labels)
        return images, {"generator": maps} | ({"discriminator": judge([images, labels])[1]} if judge else {})

    yield from _batches(run, z, labels)


def real(discriminator: keras.Model, images: np.ndarray, labels: np.ndarray) -> Iterator[Sample]:
    """Yields given images with the discriminator's maps; its maps do not depend on the labels.

    Args:
      discriminator: with self-attention.
      images: uint8 `[N, S, S, 3]`.
      labels: int `[N]`.
    """
    judge = networks.with_attention(discriminator)

    @tf.function(reduce_retracing=True)
    def run(images, labels):
        return images, {"discriminator": judge([images, labels])[1]}

    yield from _batches(run, np.float32(images) / 127.5 - 1.0, labels)


def _batches(run, first, labels: np.ndarray) -> Iterator[Sample]:
    first, labels = tf.convert_to_tensor(first, tf.float32), tf.convert_to_tensor(labels, tf.int32)
    for start in range(0, len(labels), _BATCH):
        images, maps = run(first[start : start + _BATCH], labels[start : start + _BATCH])
        quantized = pixels.to_uint8(images)
        maps = {name: values.numpy() for name, values in maps.items()}
        for i, image in enumerate(quantized):
            yield Sample(image, int(labels[start + i]), {name: values[i] for name, values in maps.items()})


def load_images(path: str, classes: Sequence[int] | None, config: Config, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads real images, cropped and resized as for training.

    Args:
      path: an image, or a folder of images: a subfolder per class, or flat.
      classes: with class folders, those to take; else one, the label of all. None: the first ten, or class 0.
      config: of the run.
      total: images to take, the first of each class in order of name (see `_per_class`).

    Returns:
      uint8 `[N, S, S, 3]` and labels int `[N]`.

    Raises:
      UserError: if the path is missing, holds no such images, or one cannot be read.
    """
    if not os.path.exists(path):
        raise UserError(f"--images={path} does not exist: name an image or a folder of images.")
    paths, labels, names = [path], [0], ()
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
    if classes and not names:
        if len(classes) > 1:
            raise UserError(f"--images={path} has no class folders: give --classes one number, the label of its images.")
        labels = [classes[0]] * len(paths)
    of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        of_class.setdefault(label, []).append(i)
    wanted = sorted(of_class)[: sampling.GRID_CLASSES] if classes is None else classes
    per_class = _per_class(total, len(wanted))
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


def _per_class(total: int, classes: int) -> int:
    return FLAGS.samples_per_class or max(total // classes, 1)


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


def run_source() -> Source:
    """Returns the samples of the training run that the flags mean: generated, or real images of `--images`.

    Raises:
      UserError: if there is no such run, or it has no self-attention.
    """
    config = config_lib.load(cli.trained_config().model_dir)
    if not config.attention_resolution or config.attention_block != "attention":
        raise UserError(
            f"--model_dir={config.model_dir} has no self-attention (--attention_resolution={config.attention_resolution}, "
            f"--attention_block={config.attention_block}): name a run trained with it."
        )
    classes = parse_classes(FLAGS.classes, config)
    generator, discriminator, step = restore_with_step(config.model_dir, FLAGS.use_ema, FLAGS.checkpoint_step)

    def samples(total: int) -> Iterator[Sample]:
        if FLAGS.images:
            return real(discriminator, *load_images(FLAGS.images, classes if FLAGS.classes else None, config, total))
        attentive = networks.with_attention(generator)
        z, labels = inputs(classes, _per_class(total, len(classes)), config.z_dim, FLAGS.sample_seed, FLAGS.truncation)
        return generated(lambda z, labels: attentive([z, labels]), discriminator, z, labels)

    models = (discriminator,) if FLAGS.images else (generator, discriminator)
    gammas = {model.name: float(model.get_layer("attention").gamma) for model in models}
    title = f"{os.path.basename(os.path.abspath(config.model_dir))}, step {step:,}"
    return Source(title, config.image_size, gammas, samples, step)


def saved_model_source(path: str) -> Source:
    """Returns the samples of an exported SavedModel: its generator's alone.

    Raises:
      UserError: if the path is missing, is no SavedModel, or has no `attention` signature.
    """
    if not os.path.isdir(path):
        raise UserError(f"--saved_model={path} does not exist: name the directory that sagan-export wrote.")
    try:
        model = tf.saved_model.load(path)
        image_size = model.signatures["serving_default"].structured_outputs["images"].shape[1]
        variables = {variable.name.removesuffix(":0"): variable for variable in model.weights}
    except (OSError, KeyError, AttributeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--saved_model={path} is not a SavedModel that sagan-export wrote ({reason}): name another.") from error
    if "attention" not in model.signatures:
        raise UserError(f"--saved_model={path} has no attention signature: export a run that was trained with self-attention.")
    z_dim = model.signatures["attention"].structured_input_signature[1]["z"].shape[1]
    # Conditional batch norm keeps a row per class: the signature itself does not say how many there are.
    conditional = variables["block_1/cbn_1/gamma"].shape
    classes = parse_classes(FLAGS.classes, Config(num_classes=conditional[0] if len(conditional) == 2 else 0))

    def attend(z, labels):
        outputs = model.signatures["attention"](z=z, labels=labels)  # Through the model: alone, it would lose its variables.
        return outputs["images"], outputs["attention"]

    def samples(total: int) -> Iterator[Sample]:
        per_class = _per_class(total, len(classes))
        return generated(attend, None, *inputs(classes, per_class, z_dim, FLAGS.sample_seed, FLAGS.truncation))

    gammas = {"generator": float(variables["attention/gamma"])}
    return Source(os.path.basename(os.path.abspath(path)), image_size, gammas, samples)


def _write_figure(source: Source) -> None:
    network, gamma = next(iter(source.gammas.items()))
    heading = f"{source.title}: attention of the {network}, gamma {gamma:.3f}"
    sheet = figure(source.samples(FIGURE_SAMPLES), network, heading, parse_queries(FLAGS.queries, source.image_size))
    with writing("output", FLAGS.output):
        pixels.save_png(FLAGS.output, sheet)
    print(f"Figure in {FLAGS.output}")
    if source.step is None:
        return
    summaries = os.path.join(FLAGS.model_dir, "summaries")
    try:
        writer = tf.summary.create_file_writer(summaries)
        with writer.as_default(source.step):
            tf.summary.image(f"attention/{network}", sheet[None])
        writer.close()
    except tf.errors.OpError as error:  # The run may be someone else's; the figure itself is written.
        logging.warning("%s cannot be written: the figure is not in TensorBoard (%s).", summaries, str(error).splitlines()[0])


def main() -> None:
    """Shows what each point of an image attends to: a figure as in the paper, or a page to explore.

    sagan-attention --model_dir=DIR --output=attention.png
    sagan-attention --model_dir=DIR --html=attention.html
    sagan-attention --model_dir=DIR --output=attention.png --classes=3 --queries='8,8;20,12'
    sagan-attention --model_dir=DIR --output=real.png --images=FOLDER   (the discriminator on real images)
    sagan-attention --saved_model=EXPORT --output=attention.png

    The figure of a training run also goes to its TensorBoard summaries.
    """
    if not (FLAGS.output or FLAGS.html):
        raise UserError("--output and --html are missing: name a .png file for a figure, or a .html file for a page to explore.")
    if FLAGS.output and not FLAGS.output.lower().endswith(".png"):
        raise UserError(f"--output={FLAGS.output} is not a .png file: name one (--html writes a page).")
    if FLAGS.queries and not FLAGS.output:
        raise UserError("--queries are points of the figure: add --output, or leave them out.")
    if FLAGS.saved_model and (FLAGS.model_dir or FLAGS.images):
        other = "--model_dir" if FLAGS.model_dir else "--images"
        raise UserError(f"--saved_model and {other} exclude each other (an export holds the generator alone): leave one out.")
    source = saved_model_source(FLAGS.saved_model) if FLAGS.saved_model else run_source()
    if FLAGS.output:
        _write_figure(source)
    if FLAGS.html:
        document = explorer.page(source.samples(PAGE_SAMPLES), source.gammas, source.title)
        with writing("html", FLAGS.html):
            os.makedirs(os.path.dirname(os.path.abspath(FLAGS.html)), exist_ok=True)
            write_file(FLAGS.html, document)
        print(f"Page in {FLAGS.html} ({len(document.encode()) / 1e6:.1f} MB): open it in any browser.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
