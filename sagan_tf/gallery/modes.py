"""What `sagan-sample` draws: a grid, separate images, walks, a sweep of bounds, neighbours, or large numbers of samples."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from sagan_tf import data, files, pixels, sampling, walks
from sagan_tf.errors import UserError
from sagan_tf.gallery import bulk
from sagan_tf.metrics import classifiers
from sagan_tf.metrics.neighbours import nearest_neighbours, neighbours_sheet
from sagan_tf.runs import strategies
from sagan_tf.runs.run import Run

__all__ = ["ANIMATION_STEPS", "STRIP_STEPS", "Request", "draw"]

STRIP_STEPS, ANIMATION_STEPS = 8, 24
_MODES = ("interpolate", "truncation_sweep", "neighbours", "num_images")
_EXCLUSIVE = (*itertools.combinations(_MODES, 2), ("truncation", "truncation_sweep"), ("num_images", "samples_per_class"))
_ANIMATIONS = (".gif", ".webp")
# The suffixes of what a mode writes, and what to call it.
_WRITES = {
    "interpolate": ((".png", *_ANIMATIONS), "a .png, .gif or .webp file"),
    "truncation_sweep": ((".png",), "a .png file"),
    "neighbours": ((".png",), "a .png file"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(sampling.Choice):
    """What to draw of a run, checked when it is made; at most one of the four that make a mode may be given.

    Attributes:
      output: FILE.png for one grid, a class per row; else a directory of separate PNGs. A walk: .png, .gif or .webp.
        `num_images`: a directory or .npz.
      interpolate: walk by "z" from sample to sample, or from class to class with "classes". A mode.
      steps: of a walk: images from one end to the next, both counted; 0: `STRIP_STEPS` or `ANIMATION_STEPS`.
      truncation_sweep: draw the same samples under each of these bounds of z, as texts; "0": no bound. A mode.
      neighbours: show so many of the nearest training images of each sample. A mode.
      num_images: draw so many, classes in turn, all of them unless some are chosen. A mode.

    Raises:
      UserError: if they do not agree with each other, or with the suffix of `output`.
    """

    output: str = ""
    interpolate: str | None = None
    steps: int = 0
    truncation_sweep: Sequence[str] = ()
    neighbours: int = 0
    num_images: int = 0

    @property
    def mode(self) -> str:
        """The name of the field that says what to draw; empty: plain samples."""
        return next((name for name in _MODES if getattr(self, name)), "")

    @property
    def suffix(self) -> str:
        """How `output` ends: ".png", say; empty: without a suffix."""
        return files.suffix_of(self.output)

    def __post_init__(self):
        object.__setattr__(self, "output", files.resolve(self.output, "output"))
        if not self.output:
            raise UserError("--output is missing: name a .png file for a grid, or a directory for separate images.")
        for one, other in _EXCLUSIVE:
            if getattr(self, one) and getattr(self, other):
                raise UserError(f"--{one} and --{other} exclude each other: choose one.")
        if self.steps and self.mode != "interpolate":
            raise UserError("--steps is for --interpolate: add it, or leave --steps out.")
        if self.steps == 1:
            raise UserError("--steps=1 has no way to go: both ends are counted, so take 2 or more.")
        if self.mode in _WRITES and self.suffix not in _WRITES[self.mode][0]:
            raise UserError(f"--output={self.output}, but --{self.mode} writes {_WRITES[self.mode][1]}: name one.")
        if self.mode == "num_images" and self.suffix in (".png", *_ANIMATIONS):
            raise UserError(f"--output={self.output}, but --num_images writes a directory or an .npz file: name one.")
        if not self.mode and self.suffix in (".npz", *_ANIMATIONS):
            needed = "--num_images" if self.suffix == ".npz" else "--interpolate"
            raise UserError(f"--output={self.output} goes with {needed}: add that flag, or name a .png file or a directory.")


def draw(run: Run, request: Request) -> str:
    """Draws what is asked for, and writes it.

    Args:
      run: whose generator draws; its data are those of the neighbours.
      request: what to draw.

    Returns:
      A sentence that says what was written, and where.

    Raises:
      UserError: if the run cannot give it, or the output cannot be written.
    """
    modes = {"interpolate": _walk, "truncation_sweep": _sweep, "neighbours": _neighbours, "num_images": _many}
    classes = sampling.parse_classes(request.classes, run.config.num_classes)
    with files.writing("output", request.output):  # What cannot be written is refused before it is drawn.
        files.make_dirs(files.parent(request.output))
    return modes.get(request.mode, _plain)(run, request, classes)


def _plain(run: Run, request: Request, classes: list[int]) -> str:
    per_class = request.samples_per_class or sampling.GRID_COLUMNS
    images, labels = _samples(run, request, classes, per_class)
    if request.suffix == ".png":
        _write(request, pixels.png(pixels.grid(images, per_class)))
        return f"{len(images)} images, a class per row, in {request.output}"
    with files.writing("output", request.output):
        for index, (image, label) in enumerate(zip(pixels.to_uint8(images), labels, strict=True)):
            name = f"class{label:04d}_{index % per_class:06d}.png"
            files.write(files.join(request.output, name), pixels.png(image))
    return f"{len(images)} images in {request.output}"


def _walk(run: Run, request: Request, classes: list[int]) -> str:
    animated = request.suffix in _ANIMATIONS
    steps = request.steps or (ANIMATION_STEPS if animated else STRIP_STEPS)
    if request.interpolate == "classes":
        if not run.config.num_classes:
            raise UserError(f"--model_dir={run.directory} has no classes to walk between: use --interpolate=z.")
        if len(classes) < 2:
            raise UserError(f"--classes={classes[0]} is one class: name at least two to walk between.")
        walk, per_class = walks.interpolate_classes, request.samples_per_class or sampling.GRID_COLUMNS
    else:
        walk, per_class = walks.interpolate_z, request.samples_per_class or 2
        if per_class < 2:
            raise UserError("--samples_per_class=1 leaves nothing to walk to: take 2 or more with --interpolate=z.")
    generator = run.networks(request.checkpoint_step, request.use_ema).generator
    images = walk(generator, run.config, classes, per_class, steps, request.draws)
    rows, count = images.shape[:2]
    if animated:
        columns = int(np.ceil(np.sqrt(rows)))
        frames = [pixels.grid(images[:, k], columns) for k in range(count)]
        frames += frames[-2:0:-1]  # And back again, so that it goes on without a jump.
        _write(request, pixels.animation(frames, request.suffix[1:]))
        return f"{rows} walks of {count} frames, and back, in {request.output}"
    _write(request, pixels.png(pixels.grid(images.reshape(rows * count, *images.shape[2:]), count)))
    return f"{rows} walks of {count} images, one per row, in {request.output}"


def _sweep(run: Run, request: Request, classes: list[int]) -> str:
    bounds = walks.parse_bounds(request.truncation_sweep)
    generator = run.networks(request.checkpoint_step, request.use_ema).generator
    per_class = request.per_class(sampling.GRID_COLUMNS, len(classes))
    images = walks.sweep_truncation(generator, run.config, classes, per_class, bounds, request.sample_seed)
    names = [f"|z| < {bound:g}" if bound else "no bound" for bound in bounds]
    _write(request, pixels.png(pixels.table(pixels.to_uint8(images), names)))
    return f"{images.shape[1]} samples under {len(bounds)} bounds of z, one per row, in {request.output}"


def _neighbours(run: Run, request: Request, classes: list[int]) -> str:
    source = data.open_source(run.config)
    if request.neighbours > source.num_examples:
        raise UserError(f"--neighbours={request.neighbours}, but the dataset has {source.num_examples} images: ask for fewer.")
    classifier = classifiers.of(run.config)
    images, labels = _samples(run, request, classes, request.per_class(sampling.GRID_COLUMNS, len(classes)))
    images = pixels.to_uint8(images)
    try:
        found = nearest_neighbours(images, source, classifier, request.neighbours)
        sheet = neighbours_sheet(images, labels.tolist(), source, *found)
    except tf.errors.OpError as error:
        raise data.user_error(error) or error from error
    _write(request, pixels.png(sheet))
    return (
        f"The nearest {request.neighbours} of {source.num_examples:,} training images to {len(images)} samples in "
        f"{request.output}: by pixels (root mean square difference of 0..255), and by features of the classifier "
        f"{classifier.name} (Euclidean)"
    )


def _many(run: Run, request: Request, classes: list[int]) -> str:
    config = run.config
    if config.distribution == "multi_worker":  # The training's cluster: one machine draws.
        config = config.replace(distribution="auto")
    if not request.classes:
        classes = list(range(max(config.num_classes, 1)))
    strategy = strategies.replicas(config)
    with strategy.scope():
        generator = run.networks(request.checkpoint_step, request.use_ema).generator
    batches = sampling.stream(sampling.sampler(generator, config, request.draws), classes, request.num_images, strategy)
    write = bulk.write_npz if request.suffix == ".npz" else bulk.write_folder
    with files.writing("output", request.output):
        write(request.output, batches, request.num_images)
    return f"{request.num_images:,} images in {request.output}"


def _samples(run: Run, request: Request, classes: list[int], per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float32 `[N, H, W, 3]` in [-1, 1], and labels `[N]`."""
    z, labels = sampling.inputs(classes, per_class, run.config.z_dim, request.draws)
    return sampling.generate(run.networks(request.checkpoint_step, request.use_ema).generator, z, labels), labels


def _write(request: Request, content: bytes) -> None:
    with files.writing("output", request.output):
        files.write(request.output, content)
