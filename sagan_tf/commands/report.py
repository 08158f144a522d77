"""`sagan-report`: one HTML page that says what a run was and how it went, or how several runs compare."""

import base64
import dataclasses
import html
import importlib.metadata
import io
import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from sagan_tf import config as config_lib
from sagan_tf import networks, sampling
from sagan_tf.attention.figure import figure
from sagan_tf.attention.maps import generated
from sagan_tf.commands import cli
from sagan_tf.config import Config, reproduce_command, show
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.runs import history
from sagan_tf.runs.checkpoints import Checkpoints, restore, write_file
from sagan_tf.runs.history import Curve

FLAGS = flags.FLAGS

# Title, y axis, and the tags that belong there (a regular expression), in the order of the page. Tags that no row takes
# follow, grouped by what stands before their first slash.
PANELS = (
    ("FID", "", r"metrics/(fid|intra_fid\w*)"),
    ("Inception Score", "", r"metrics/inception_score\w*"),
    ("KID", "", r"metrics/kid"),
    ("Precision, recall, density, coverage", "", r"metrics/(precision|recall|density|coverage)"),
    ("Agreement of the twins", "1: alike, 0: by chance", r"twins/agreement"),
    ("Losses", "", r"training/(generator|discriminator)_loss\w*"),
    ("Logits of the discriminator", "positive: taken for real", r"logits/.*"),
    ("Gamma of the attention blocks", "0: switched off", r"gamma/.*"),
    ("Spectral norms of the generator", "largest singular value", r"sigma/generator/.*"),
    ("Spectral norms of the discriminator", "largest singular value", r"sigma/discriminator/.*"),
    ("Gradient norms", "", r"training/\w+_gradient_norm"),
    ("Variable norms", "", r"training/\w+_variable_norm"),
    ("Learning rates", "", r"learning_rate/.*"),
    ("Images per second", "", r"images_per_second"),
)
# What a comparison says of the last step, beside the metrics.
_LAST_VALUES = {
    "training/generator_loss": "loss of the generator",
    "training/discriminator_loss_real": "loss of the discriminator, real",
    "training/discriminator_loss_fake": "loss of the discriminator, fake",
    "gamma/generator": "gamma of the generator",
    "gamma/discriminator": "gamma of the discriminator",
    "twins/agreement": "agreement of the twins",
}
LOWER_IS_BETTER = ("fid", "intra_fid", "intra_fid_worst_class", "kid")
# Not a result of the model: it has no best.
_REFERENCES = ("inception_score_real",)
# Longer curves are drawn as means of neighbouring points: more would not be seen, and the page stays small.
MAX_POINTS = 400
MAX_LINES = 6
_MAX_PNG_BYTES, _MAX_WIDTH = 500_000, 1400
_SHOWN_WIDTH = 600  # Smaller pictures are shown enlarged by whole factors.
_ATTENTION_SAMPLES = 3

_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444", "#06b6d4", "#84cc16")
_STYLES = ("-", "--", ":", "-.")
_INK, _FAINT = "#123456", "#8b8b93"  # The ink is replaced by the colour of the page's text, light or dark.

_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere;
  background: light-dark(#fff, #16181d); color: light-dark(#1b1d22, #e6e6ea); }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } thead th { white-space: nowrap; }
.numbers thead th + th { text-align: right; }
pre { background: var(--soft); padding: .75rem; border-radius: .4rem; white-space: pre-wrap; font-size: .85rem; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .75; }
img { max-width: 100%; height: auto; border-radius: .3rem; } svg { width: 100%; height: auto; display: block; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.5rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 1.5rem; }
.warning { border-left: .25rem solid #f97316; padding-left: .75rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
summary { cursor: pointer; }
"""


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("output", "", "FILE.html to write. --model_dir may name several runs, A,B,...: they are compared.")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run recorded.

    Attributes:
      name: how the page calls it.
      directory: of the run.
      config: its settings.
      curves: by tag: those of TensorBoard, and `metrics/NAME` of `metrics.jsonl`.
      records: lines of `metrics.jsonl`, the oldest first.
    """

    name: str
    directory: str
    config: Config
    curves: Mapping[str, Curve]
    records: Sequence[dict]

    @property
    def step(self) -> int:
        """The last step with anything on record."""
        return max(int(steps[-1]) for steps, _ in self.curves.values())


def metric_curves(records: Sequence[dict]) -> dict[str, Curve]:
    """Returns the metrics over steps by `metrics/NAME`, with the protocol's number behind it from the second on."""
    curves = {}
    for number, (_, group) in enumerate(history.by_protocol(records), start=1):
        for name in dict.fromkeys(name for record in group for name in record["values"]):
            points = {record["step"]: record["values"][name] for record in group if name in record["values"]}
            curves[f"metrics/{name}" + (f" (protocol {number})" if number > 1 else "")] = history.curve(points)
    return curves


def load_run(directory: str, name: str = "") -> Run:
    """Reads what a run recorded.

    Args:
      directory: of the run.
      name: how to call it; empty: the last part of the directory.

    Raises:
      UserError: if it is not the directory of a run, or nothing is recorded there yet.
    """
    config = config_lib.load(directory)
    records = [record for record in history.read(directory) if record["values"] and record["protocol"]]
    # metrics.jsonl has these with their protocol.
    scalars = history.read_scalars(os.path.join(directory, "summaries"))
    curves = {tag: curve for tag, curve in scalars.items() if not tag.startswith("metrics/")} | metric_curves(records)
    if not curves:
        raise UserError(f"--model_dir={directory} has nothing recorded yet, neither summaries nor metrics: train first.")
    return Run(name or os.path.basename(os.path.abspath(directory)), directory, config, curves, records)


def split_directories(text: str) -> list[str]:
    """Returns the directories that `--model_dir` names: one, or several with commas between.

    Raises:
      UserError: if there is none, or one is named twice.
    """
    names = [text] if os.path.isdir(text) else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--model_dir is missing: name the directory of a training run, or several with commas between.")
    if len({os.path.abspath(name) for name in names}) < len(names):
        raise UserError(f"--model_dir={text} names a run twice: name different ones.")
    return names


def differences(configs: Sequence[Config]) -> dict[str, list]:
    """Returns the settings in which configurations differ, with the value in each; `model_dir` is left out."""
    values = {field.name: [getattr(c, field.name) for c in configs] for field in dataclasses.fields(Config)}
    return {name: each for name, each in values.items() if name != "model_dir" and any(value != each[0] for value in each)}


def best(name: str, records: Sequence[dict]) -> tuple[float, int]:
    """Returns the best value of a metric among records of one protocol, and its step."""
    points = [(record["values"][name], record["step"]) for record in records if name in record["values"]]
    return (min if name in LOWER_IS_BETTER else max)(points, key=lambda point: point[0])


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """Returns a curve of at most so many points: means of equal groups of neighbours."""
    steps, values = curve
    if len(steps) <= most:
        return curve
    groups = np.array_split(np.arange(len(steps)), most)
    return tuple(np.array([each[group].mean() for group in groups]) for each in (steps, values))


def panels(runs: Sequence[Run]) -> list[tuple[str, str, list[str]]]:
    """Returns title, y axis and tags of each panel for which one of the runs has a curve of two points or more."""
    tags = sorted({tag for run in runs for tag in run.curves})
    rows, left = [], list(tags)
    for title, unit, pattern in PANELS:
        taken = [tag for tag in left if re.fullmatch(pattern + r"( \(protocol \d+\))?", tag)]
        left = [tag for tag in left if tag not in taken]
        rows.append((title, unit, taken))
    for group in dict.fromkeys(tag.partition("/")[0] for tag in left):
        title = group.replace("_", " ").capitalize()
        rows.append((title, "", [tag for tag in left if tag.partition("/")[0] == group]))
    return [row for row in rows if any(len(run.curves[tag][0]) > 1 for run in runs for tag in row[2] if tag in run.curves)]


def _label(tag: str) -> str:
    """Returns how the legend calls a tag: without what the panel's title says."""
    parts = tag.split("/")
    return "/".join(parts[2:] if parts[0] == "sigma" else parts[-1:]).replace("_", " ")


def plot(title: str, unit: str, tags: Sequence[str], runs: Sequence[Run], prefix: str) -> str:
    """Draws curves as an SVG element whose text has the colour of the page's.

    One run: a colour for each tag; of more than `MAX_LINES`, those that end highest, the others pale. Several: a
    colour for each run, a dash for each tag.

    Args:
      title: of the panel.
      unit: of the y axis.
      tags: of the curves.
      runs: that may have them.
      prefix: of the element's ids, which no other element of the page shares.

    Raises:
      UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("sagan-report draws with matplotlib, which is not installed: pip install matplotlib.") from error
    colours = {"text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _FAINT}
    settings = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 9, "font.family": "sans-serif", **colours}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        drawn = [(run, tag) for run in runs for tag in tags if tag in run.curves]
        # Where there are too many for a legend, those that end highest are named.
        named = {tag for _, tag in sorted(drawn, key=lambda pair: -pair[0].curves[pair[1]][1][-1])[: MAX_LINES - 2]}
        many = len(tags) > MAX_LINES
        first = {run.name: tag for run, tag in reversed(drawn)}
        for run, tag in drawn:
            steps, values = thin(run.curves[tag])
            mark = "o" if tag.startswith("metrics/") or len(steps) == 1 else None
            style = {"linewidth": 1.4, "marker": mark, "markersize": 4}
            if len(runs) > 1:
                style["color"] = _COLOURS[runs.index(run) % len(_COLOURS)]
                style |= {"linewidth": 0.7, "alpha": 0.6} if many else {"linestyle": _STYLES[tags.index(tag) % len(_STYLES)]}
                label = run.name if many or len(tags) == 1 else f"{run.name}: {_label(tag)}"
                label = "_" if many and tag != first[run.name] else label
            elif many and tag not in named:
                style |= {"color": _FAINT, "linewidth": 0.7, "alpha": 0.6, "zorder": 1}
                label = "_"
            else:
                shown = [each for each in tags if each in named] if many else list(tags)
                style["color"] = _COLOURS[shown.index(tag) % len(_COLOURS)]
                label = _label(tag)
            axes.plot(steps, values, label=label, **style)
        if many and len(runs) == 1:
            axes.plot([], [], color=_FAINT, linewidth=0.7, label=f"{len(tags) - len(named)} lower ones")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(drawn) > 1:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        output = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=nothing)
    svg = output.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{prefix}-")
    return svg


def picture(image: Image.Image) -> str:
    """Returns an `<img>` with the image in it: as PNG, or smaller and as WebP where it would be large."""
    image = image.convert("RGB")
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    kind = "png"
    if encoded.tell() > _MAX_PNG_BYTES:
        if image.width > _MAX_WIDTH:
            image = image.resize((_MAX_WIDTH, round(image.height * _MAX_WIDTH / image.width)), Image.Resampling.LANCZOS)
        encoded, kind = io.BytesIO(), "webp"
        image.save(encoded, format="WEBP", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode()
    factor = max(_SHOWN_WIDTH // image.width, 1)
    size = f'width="{factor * image.width}" height="{factor * image.height}"'
    size += ' style="image-rendering: pixelated"' if factor > 1 else ""
    return f'<img alt="" {size} src="data:image/{kind};base64,{data}">'


def final_grid(run: Run) -> str:
    """Returns the run's last sample grid as a figure with a caption; a sentence if there is none.

    Raises:
      UserError: if the file is damaged.
    """
    last = history.last_grid(run.directory)
    if last is None:
        return "<p>No sample grid has been drawn yet (--save_samples_steps).</p>"
    step, path = last
    rows = "a class per row, " if run.config.num_classes else ""
    try:
        with Image.open(path) as image:
            shown = picture(image)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): remove it.") from error
    return f"<figure>{shown}<figcaption>{_text(run.name)}, step {step:,}: {rows}fixed z.</figcaption></figure>"


def attention_figures(run: Run) -> str:
    """Returns attention examples of both networks at the newest checkpoint; a sentence if there can be none."""
    config = run.config
    if not config.attention_resolution or config.attention_block != "attention":
        return "<p>These networks have no self-attention.</p>"
    if not Checkpoints(run.directory).steps():
        return "<p>There is no checkpoint yet.</p>"
    generator, discriminator = restore(run.directory)
    z, labels = sampling.grid_inputs(config.z_dim, config.num_classes, config.seed)
    rows = slice(0, _ATTENTION_SAMPLES * sampling.GRID_COLUMNS, sampling.GRID_COLUMNS)
    attend = networks.with_attention(generator)
    samples = list(generated(lambda z, labels: attend([z, labels]), discriminator, z[rows], labels.numpy()[rows]))
    figures = []
    for model in (generator, discriminator):
        gamma = float(model.get_layer("attention").gamma)
        sheet = figure(samples, model.name, f"Attention of the {model.name}, gamma {gamma:.3f}")
        figures.append(f"<figure>{picture(Image.fromarray(sheet))}</figure>")
    return "\n".join(figures)


def environment() -> dict[str, str]:
    """Returns versions and devices of this machine."""
    versions = {
        name: importlib.metadata.version(name) for name in ("sagan_tf", "tensorflow", "keras", "numpy", "tensorboard", "matplotlib")
    }
    devices = []
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
        devices.append(details.get("device_name", device.device_type))
    shown = ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return {"python": platform.python_version(), **versions, "system": system, "TensorFlow devices": shown}


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.5g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence], numeric: bool = False) -> str:
    """Returns an HTML table; heads are HTML, cells are text."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    kind = ' class="number"' if numeric else ""
    lines = [
        f"<tr><th>{_text(row[0])}</th>" + "".join(f"<td{kind}>{_text(cell)}</td>" for cell in row[1:]) + "</tr>" for row in rows
    ]
    start = '<table class="numbers">' if numeric else "<table>"
    return f"{start}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _curves(runs: Sequence[Run]) -> str:
    drawn = [f"<figure>{plot(*panel, runs, f'c{number}')}</figure>" for number, panel in enumerate(panels(runs))]
    longest = max(len(steps) for run in runs for steps, _ in run.curves.values())
    note = f"<p>Of curves with more than {MAX_POINTS} points, means of neighbours are drawn.</p>" if longest > MAX_POINTS else ""
    return f'{note}<div class="curves">{"".join(drawn)}</div>'


def _configuration(config: Config) -> str:
    own = config.non_default()
    first = [(f"--{name}", show(value), show(getattr(Config(), name))) for name, value in own.items()]
    rest = [field.name for field in dataclasses.fields(Config) if field.name not in own and field.name != "model_dir"]
    others = _table(("setting", "value"), [(f"--{name}", show(getattr(config, name))) for name in rest])
    return (
        _table(("setting", "value", "default"), first)
        + f"<details><summary>{len(rest)} settings at their defaults</summary>{others}</details>"
    )


def _metrics(run: Run) -> str:
    if not run.records:
        return f"<p>Not measured yet: <code>{_text(f'sagan-evaluate --model_dir={shlex.quote(run.directory)}')}</code></p>"
    parts, groups = [], history.by_protocol(run.records)
    for number, (protocol, records) in enumerate(groups, start=1):
        if len(groups) > 1:
            parts.append(f"<h3>Protocol {number}</h3>")
        last = records[-1]
        rows = []
        for name, value in last["values"].items():
            top = ("", "") if name in _REFERENCES else best(name, records)
            at = f"{top[1]:,}" if top[1] != "" else ""
            rows.append((name, _number(value), f"{last['step']:,}", _number(top[0]) if at else "", at))
        parts.append(_table(("metric", "last", "at step", "best", "at step"), rows, numeric=True))
        parts += [f'<p class="warning">{_text(warning)}</p>' for warning in dict.fromkeys(last["warnings"])]
        settings = [(name, show(value)) for name, value in protocol.items()]
        parts.append(f"<details open><summary>How it was measured</summary>{_table(('protocol', 'value'), settings)}</details>")
    return "".join(parts)


def _comparison(runs: Sequence[Run]) -> str:
    """Returns the table of last and best values, and how the protocols differ."""
    heads = [
        "",
        *(
            f'<span class="swatch" style="background:{_COLOURS[i % len(_COLOURS)]}"></span>{_text(run.name)}'
            for i, run in enumerate(runs)
        ),
    ]
    rows = [("steps", *(f"{run.step:,}" for run in runs))]
    for tag, name in _LAST_VALUES.items():
        if any(tag in run.curves for run in runs):
            rows.append((name, *(_number(run.curves[tag][1][-1]) if tag in run.curves else "" for run in runs)))
    if any("images_per_second" in run.curves for run in runs):
        rates = [run.curves.get("images_per_second") for run in runs]
        rows.append(("images per second, median", *(f"{np.median(rate[1]):.4g}" if rate else "" for rate in rates)))
    # Of each run the protocol of its last record.
    latest = [
        next(group for group in history.by_protocol(run.records) if run.records[-1] in group[1]) if run.records else None
        for run in runs
    ]
    names = dict.fromkeys(name for group in latest if group for record in group[1] for name in record["values"])
    for name in names:
        cells = []
        for group in latest:
            records = [record for record in (group[1] if group else []) if name in record["values"]]
            cell = f"{_number(records[-1]['values'][name])} (step {records[-1]['step']:,})" if records else ""
            if len(records) > 1 and name not in _REFERENCES:
                value, step = best(name, records)
                cell += f"; best {_number(value)} (step {step:,})"
            cells.append(cell)
        rows.append((name, *cells))
    page = _table(heads, rows, numeric=True)
    protocols = [group[0] if group else {} for group in latest]
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    differing = [key for key in keys if any(p.get(key) != next(filter(None, protocols)).get(key) for p in protocols if p)]
    if differing:
        settings = [(key, *(show(p[key]) if key in p else "" for p in protocols)) for key in differing]
        page += '<p class="warning">The metrics were measured differently: compare with care.</p>' + _table(heads, settings)
    return page


def page(runs: Sequence[Run]) -> str:
    """Returns the report of one run, or the comparison of several, as one self-contained HTML document.

    Raises:
      UserError: if matplotlib is not installed.
    """
    if len(runs) == 1:
        (run,) = runs
        config = run.config
        title = f"{run.name}, {run.step:,} steps"
        lead = f"{config.dataset}, {config.image_size} px, " + (
            f"{config.num_classes} classes" if config.num_classes else "no classes"
        )
        command = reproduce_command(config, f"{run.directory.rstrip('/')}-again")
        sections = {
            "Samples": final_grid(run),
            "Metrics": _metrics(run),
            "Curves": _curves(runs),
            "Attention": attention_figures(run),
            "Configuration": _configuration(config),
            "To reproduce": f"<pre>{_text(command)}</pre>",
        }
    else:
        title = " and ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs compared"
        lead = ", ".join(run.directory for run in runs)
        differing = [(f"--{name}", *map(show, values)) for name, values in differences([run.config for run in runs]).items()]
        settings = (
            _table(["setting", *(_text(run.name) for run in runs)], differing) if differing else "<p>All settings are equal.</p>"
        )
        sections = {
            "Results": _comparison(runs),
            "What differs in the configuration": settings,
            "Curves": _curves(runs),
            "Samples": f'<div class="pictures">{"".join(final_grid(run) for run in runs)}</div>',
            "To reproduce": "".join(
                f"<pre>{_text(reproduce_command(run.config, run.directory.rstrip('/') + '-again'))}</pre>" for run in runs
            ),
        }
    sections["Environment of this page"] = _table(("", ""), list(environment().items()))
    body = "\n".join(f"<h2>{_text(name)}</h2>\n{content}" for name, content in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n<h1>{_text(title)}</h1>\n<p>{_text(lead)}</p>\n{body}\n</html>\n"
    )


def main() -> None:
    """Writes one HTML page about a run: samples, metrics, curves, attention, configuration; or compares runs.

    sagan-report --model_dir=DIR --output=report.html
    sagan-report --model_dir=A,B --output=comparison.html
    """
    if not FLAGS.output:
        raise UserError("--output is missing: name a .html file.")
    directories = split_directories(FLAGS.model_dir)
    names = [os.path.basename(os.path.abspath(directory)) for directory in directories]
    if len(set(names)) < len(names):
        names = directories
    runs = [load_run(directory, name) for directory, name in zip(directories, names, strict=True)]
    if os.path.isdir(FLAGS.output):
        raise UserError(f"--output={FLAGS.output} is a directory: name a .html file in it.")
    # What cannot be written is refused before it is drawn.
    with writing("output", FLAGS.output):
        os.makedirs(os.path.dirname(os.path.abspath(FLAGS.output)), exist_ok=True)
    document = page(runs)
    with writing("output", FLAGS.output):
        write_file(FLAGS.output, document)
    print(f"Report in {FLAGS.output} ({len(document.encode()) / 1e6:.1f} MB): open it in any browser.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
