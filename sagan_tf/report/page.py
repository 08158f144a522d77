"""What a report says: one HTML page about a run, or one that compares several."""

import base64
import dataclasses
import importlib.metadata
import io
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from sagan_tf import files, networks, sampling, templates
from sagan_tf.attention.figure import figure
from sagan_tf.attention.maps import generated
from sagan_tf.config import Config, reproduce_command, show
from sagan_tf.errors import UserError
from sagan_tf.metrics.record import Record, by_protocol
from sagan_tf.report import plots
from sagan_tf.runs.run import Run, load_run
from sagan_tf.runs.scalars import Curve, curve

__all__ = ["Picture", "Recorded", "attention_pictures", "load", "metric_curves", "page", "picture", "write"]

# What a comparison says of the last step, beside the metrics.
_LAST_VALUES = {
    "training/generator_loss": "loss of the generator",
    "training/discriminator_loss_real": "loss of the discriminator, real",
    "training/discriminator_loss_fake": "loss of the discriminator, fake",
    "gamma/generator": "gamma of the generator",
    "gamma/discriminator": "gamma of the discriminator",
    "samples/diversity": "diversity of the samples",
    "faces/agreement": "agreement of the eyes",
}
_LOWER_IS_BETTER = ("fid", "intra_fid", "intra_fid_worst_class", "kid")
# Not a result of the model: it has no best.
_REFERENCES = ("inception_score_real",)
_MAX_PNG_BYTES, _MAX_WIDTH = 500_000, 1400
_SHOWN_WIDTH = 600  # Smaller pictures are shown enlarged by whole factors.
_ATTENTION_SAMPLES = 3
_VERSIONS = ("sagan_tf", "tensorflow", "keras", "numpy", "tensorboard", "matplotlib")

# A row of a table: its head, then the cells.
_Row = Sequence[str]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a training run recorded.

    Attributes:
      name: how the page calls it.
      run: the run.
      curves: by tag: those of TensorBoard, and `metrics/NAME` of the records.
      records: what was measured, oldest first.
    """

    name: str
    run: Run
    curves: Mapping[str, Curve]
    records: Sequence[Record]

    @property
    def step(self) -> int:
        """The last step with anything on record."""
        return max(int(steps[-1]) for steps, _ in self.curves.values())


def write(directories: Sequence[str], output: str) -> int:
    """Writes the report of a run, or the comparison of several.

    Args:
      directories: of the runs.
      output: FILE.html; its directory is made.

    Returns:
      Bytes of the page.

    Raises:
      UserError: as `load` and `page`; or if the file is not named, or cannot be written.
    """
    if not output:
        raise UserError("--output is missing: name a .html file.")
    output, names = files.resolve(output, "output"), [files.name_of(directory) for directory in directories]
    if len(set(names)) < len(names):
        names = list(directories)
    runs = [load(directory, name) for directory, name in zip(directories, names, strict=True)]
    if files.is_dir(output):
        raise UserError(f"--output={output} is a directory: name a .html file in it.")
    with files.writing("output", output):  # What cannot be written is refused before it is drawn.
        files.make_dirs(files.parent(output))
    document = page(runs).encode()
    with files.writing("output", output):
        files.write(output, document)
    return len(document)


def load(directory: str, name: str = "") -> Recorded:
    """Reads what a run recorded.

    Args:
      directory: of the run.
      name: how to call it; empty: the last part of the directory.

    Raises:
      UserError: if it is not the directory of a run, or nothing is recorded there yet.
    """
    run = load_run(directory)
    records = [record for record in run.records if record.values and record.protocol]
    # The records have these with their protocol.
    curves = {tag: found for tag, found in run.scalars().items() if not tag.startswith("metrics/")} | metric_curves(records)
    if not curves:
        raise UserError(f"--model_dir={directory} has nothing recorded yet, neither summaries nor metrics: train first.")
    return Recorded(name or run.name, run, curves, records)


def metric_curves(records: Iterable[Record]) -> dict[str, Curve]:
    """Returns the metrics over steps by `metrics/NAME`, with the protocol's number behind it from the second on."""
    curves = {}
    for number, (_, group) in enumerate(by_protocol(records), start=1):
        for name in _names(group):
            points = {record.step or 0: record.values[name] for record in group if name in record.values}
            curves[f"metrics/{name}" + (f" (protocol {number})" if number > 1 else "")] = curve(points)
    return curves


def page(runs: Sequence[Recorded]) -> str:
    """Returns the report of one run, or the comparison of several, as one self-contained HTML document.

    Raises:
      UserError: if a sample grid or all checkpoints are damaged.
    """
    curves = {run.name: run.curves for run in runs}
    shared = {
        "runs": runs,
        "colours": [plots.COLOURS[number % len(plots.COLOURS)] for number in range(len(runs))],
        "grids": [_grid(run) for run in runs],
        "plots": [plots.plot(*panel, curves, f"c{number}") for number, panel in enumerate(plots.panels(curves))],
        "longest": max(len(steps) for run in runs for steps, _ in run.curves.values()),
        "max_points": plots.MAX_POINTS,
        "commands": [reproduce_command(run.run.config, f"{run.run.directory.rstrip('/')}-again") for run in runs],
        "environment": _environment(),
    }
    return templates.render("report.html", **shared, **(_report(runs[0]) if len(runs) == 1 else _comparison(runs)))


def _report(run: Recorded) -> dict[str, Any]:
    """Returns what the page of one run says beside what all pages do."""
    config, defaults = run.run.config, dataclasses.asdict(Config())
    own = config.non_default()
    return {
        "title": f"{run.name}, {run.step:,} steps",
        "protocols": [(_metrics(group), group[-1].warnings, _shown(protocol)) for protocol, group in by_protocol(run.records)],
        "measure": f"sagan-evaluate --model_dir={shlex.quote(run.run.directory)}",
        "attention": attention_pictures(run.run),
        "settings": [(f"--{name}", show(value), show(defaults[name])) for name, value in own.items()],
        "at_default": [(f"--{name}", show(value)) for name, value in defaults.items() if name not in {*own, "model_dir"}],
    }


def _metrics(records: Sequence[Record]) -> list[_Row]:
    """Returns the rows of one protocol: of each metric of its last record the last and the best value."""
    last = records[-1]
    rows: list[_Row] = []
    for name, value in last.values.items():
        row = (name, _number(value), f"{last.step:,}")
        best, step = _best(name, records)
        rows.append((*row, "", "") if name in _REFERENCES else (*row, _number(best), f"{step:,}"))
    return rows


def _comparison(runs: Sequence[Recorded]) -> dict[str, Any]:
    """Returns what a comparison says beside what all pages do."""
    results: list[_Row] = [("steps", *(f"{run.step:,}" for run in runs))]
    for tag, name in _LAST_VALUES.items():
        if any(tag in run.curves for run in runs):
            results.append((name, *(_number(run.curves[tag][1][-1]) if tag in run.curves else "" for run in runs)))
    rates = [run.curves.get("images_per_second") for run in runs]
    if any(rates):
        results.append(("images per second, median", *(f"{np.median(rate[1]):.4g}" if rate else "" for rate in rates)))
    # Of each run the protocol of its last record.
    latest = [[record for record in run.records if record.protocol == run.records[-1].protocol] for run in runs]
    for name in _names(record for group in latest for record in group):
        results.append((name, *(_last_and_best(name, group) for group in latest)))
    protocols = [group[0].protocol if group else {} for group in latest]
    differing = _differing([protocol for protocol in protocols if protocol])
    configs = [{**dataclasses.asdict(run.run.config), "model_dir": ""} for run in runs]
    return {
        "title": " and ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs compared",
        "results": results,
        "protocols": [(name, *(show(each[name]) if name in each else "" for each in protocols)) for name in differing],
        "settings": [(f"--{name}", *(show(each[name]) for each in configs)) for name in _differing(configs)],
    }


def _last_and_best(name: str, records: Sequence[Record]) -> str:
    """Returns what a comparison says of a metric; empty if it was not measured."""
    measured = [record for record in records if name in record.values]
    if not measured:
        return ""
    text = f"{_number(measured[-1].values[name])} (step {measured[-1].step:,})"
    if len(measured) == 1 or name in _REFERENCES:
        return text
    best, step = _best(name, measured)
    return f"{text}; best {_number(best)} (step {step:,})"


def _best(name: str, records: Iterable[Record]) -> tuple[float, int]:
    """Returns the best value of a metric among records of one protocol, and its step."""
    points = [(record.values[name], record.step or 0) for record in records if name in record.values]
    return (min if name in _LOWER_IS_BETTER else max)(points, key=lambda point: point[0])


def _names(records: Iterable[Record]) -> list[str]:
    """Returns the metrics of records, in the order in which they first occur."""
    return list(dict.fromkeys(name for record in records for name in record.values))


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names whose values are not the same in all of these settings."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]


def _shown(settings: Mapping[str, Any]) -> list[_Row]:
    return [(name, show(value)) for name, value in settings.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.5g}"


class Picture(NamedTuple):
    """An image that stands in the page itself.

    Attributes:
      source: a `data:` address.
      width: at which it is shown, in pixels.
      height: likewise.
      enlarged: its pixels are shown as squares.
    """

    source: str
    width: int
    height: int
    enlarged: bool


def picture(image: Image.Image) -> Picture:
    """Returns an image for the page: as PNG, or smaller and as WebP where it would be large."""
    image = image.convert("RGB")
    encoded, kind = io.BytesIO(), "png"
    image.save(encoded, format="PNG", optimize=True)
    if encoded.tell() > _MAX_PNG_BYTES:
        if image.width > _MAX_WIDTH:
            image = image.resize((_MAX_WIDTH, round(image.height * _MAX_WIDTH / image.width)), Image.Resampling.LANCZOS)
        encoded, kind = io.BytesIO(), "webp"
        image.save(encoded, format="WEBP", quality=85)
    source = f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"
    factor = max(_SHOWN_WIDTH // image.width, 1)
    return Picture(source, factor * image.width, factor * image.height, factor > 1)


def _grid(run: Recorded) -> tuple[Picture, str] | None:
    """Returns a run's last sample grid and its caption; None if there is none.

    Raises:
      UserError: if the file is damaged.
    """
    last = run.run.last_grid()
    if last is None:
        return None
    step, path = last
    try:
        with files.reading(path) as file, Image.open(file) as image:
            shown = picture(image)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): remove it.") from error
    return shown, f"{run.name}, step {step:,}: {'a class per row, ' if run.run.config.num_classes else ''}fixed z."


def attention_pictures(run: Run) -> list[Picture]:
    """Returns attention examples of both networks at the newest checkpoint; none if they have none, or there is none.

    Raises:
      UserError: if no checkpoint can be read.
    """
    config = run.config
    if not config.attention_resolution or config.attention_block != "attention" or not run.steps:
        return []
    z, labels = sampling.grid_inputs(config.z_dim, config.num_classes, config.seed)
    rows = slice(0, _ATTENTION_SAMPLES * sampling.GRID_COLUMNS, sampling.GRID_COLUMNS)
    attend = networks.with_attention(run.generator)
    samples = list(generated(lambda z, labels: attend([z, labels]), run.discriminator, z[rows], labels.numpy()[rows]))
    pictures = []
    for model in (run.generator, run.discriminator):
        gamma = float(model.get_layer("attention").gamma)
        sheet = figure(samples, model.name, f"Attention of the {model.name}, gamma {gamma:.3f}")
        pictures.append(picture(Image.fromarray(sheet)))
    return pictures


def _environment() -> list[_Row]:
    """Returns versions and devices of this machine."""
    devices = []
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
        devices.append(details.get("device_name", device.device_type))
    return [
        ("python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in _VERSIONS),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"),
        ("TensorFlow devices", ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))),
    ]
