"""The curves of runs as panels, in SVG that takes the colours of the page around it."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sagan_tf.runs.scalars import Curve

__all__ = ["COLOURS", "INK", "MAX_POINTS", "PANELS", "Runs", "panels", "plot", "thin"]

# Curves by tag, by the name of the run.
Runs = Mapping[str, Mapping[str, Curve]]

# Title, y axis, and the tags that belong there (a regular expression), in the order of the page. Tags that no row takes
# follow, grouped by what stands before their first slash.
PANELS = (
    ("FID", "", r"metrics/(fid|intra_fid\w*)"),
    ("Inception Score", "", r"metrics/inception_score\w*"),
    ("KID", "", r"metrics/kid"),
    ("Precision, recall, density, coverage", "", r"metrics/(precision|recall|density|coverage)"),
    ("Class accuracy", "", r"metrics/class_accuracy\w*"),
    ("Diversity", "1: as varied as the real images", r"samples/diversity"),
    ("Agreement of the eyes", "1: alike, 0: by chance", r"faces/agreement"),
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
# Longer curves are drawn as means of neighbouring points: more would not be seen, and the page stays small.
MAX_POINTS = 400
_MAX_LINES = 6

# The ink is replaced by the colour of the page's text, light or dark.
INK, _FAINT = "#123456", "#8b8b93"
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444", "#06b6d4", "#84cc16")
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _FAINT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon"), False),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
}


def panels(runs: Runs) -> list[tuple[str, str, list[str]]]:
    """Returns title, y axis and tags of each panel for which one of the runs has a curve of two points or more."""
    left = sorted({tag for curves in runs.values() for tag in curves})
    rows = []
    for title, unit, pattern in PANELS:
        taken = [tag for tag in left if re.fullmatch(pattern + r"( \(protocol \d+\))?", tag)]
        left = [tag for tag in left if tag not in taken]
        rows.append((title, unit, taken))
    for group in dict.fromkeys(tag.partition("/")[0] for tag in left):
        title = group.replace("_", " ").capitalize()
        rows.append((title, "", [tag for tag in left if tag.partition("/")[0] == group]))
    return [row for row in rows if any(len(curves[tag][0]) > 1 for curves in runs.values() for tag in row[2] if tag in curves)]


def plot(title: str, unit: str, tags: Sequence[str], runs: Runs, prefix: str) -> str:
    """Draws curves as an SVG element whose text has the colour of the page's.

    One run: a colour for each tag; of more than 6, those that end highest, the others pale. Several: a
    colour for each run, a dash for each tag.

    Args:
      title: of the panel.
      unit: of the y axis.
      tags: of the curves.
      runs: that may have them.
      prefix: of the element's ids, which no other element of the page shares.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": prefix}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        lines = list(_lines(tags, runs))
        for (steps, values), style in lines:
            axes.plot(steps, values, **style)
        axes.set(title=title, xlabel="step", ylabel=unit)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.ticklabel_format(axis="y", style="plain")
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        output = io.StringIO()
        figure.savefig(output, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = output.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<svg[^>]*", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), svg, count=1)
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{prefix}-")
    return svg


def _lines(tags: Sequence[str], runs: Runs) -> Iterator[tuple[Curve, dict[str, Any]]]:
    """Yields the lines of a panel: a curve, and how Matplotlib draws it."""
    drawn = [(name, tag) for name, curves in runs.items() for tag in tags if tag in curves]
    # Where there are too many for a legend, those that end highest are named.
    many = len(tags) > _MAX_LINES
    named = {tag for _, tag in sorted(drawn, key=lambda pair: -runs[pair[0]][pair[1]][1][-1])[: _MAX_LINES - 2]}
    shown = [tag for tag in tags if tag in named or not many]
    first = {name: tag for name, tag in reversed(drawn)}
    pale: dict[str, Any] = {"color": _FAINT, "linewidth": 0.7, "alpha": 0.6}
    for name, tag in drawn:
        curve = thin(runs[name][tag])
        marker = "o" if tag.startswith("metrics/") or len(curve[0]) == 1 else None
        style: dict[str, Any] = {"linewidth": 1.4, "marker": marker, "markersize": 4}
        if len(runs) == 1:
            style |= {"color": COLOURS[shown.index(tag) % len(COLOURS)]} if tag in shown else pale | {"zorder": 1}
            style["label"] = _label(tag) if tag in shown else "_"
        elif many:
            style |= pale | {"label": name if tag == first[name] else "_"}
        else:
            style |= {"linestyle": _DASHES[tags.index(tag) % len(_DASHES)]}
            style |= {"label": name if len(tags) == 1 else f"{name}: {_label(tag)}"}
        if len(runs) > 1:
            style["color"] = COLOURS[list(runs).index(name) % len(COLOURS)]
        yield curve, style
    if many and len(runs) == 1:
        yield (np.array([]), np.array([])), {"color": _FAINT, "linewidth": 0.7, "label": f"{len(tags) - len(named)} lower ones"}


def _label(tag: str) -> str:
    """Returns how the legend calls a tag: without what the panel's title says."""
    parts = tag.split("/")
    return "/".join(parts[2:] if parts[0] == "sigma" else parts[-1:]).replace("_", " ")


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """Returns a curve of at most so many points: means of equal groups of neighbours."""
    steps, values = curve
    if len(steps) <= most:
        return curve
    groups = np.array_split(np.arange(len(steps)), most)
    return np.array([steps[group].mean() for group in groups]), np.array([values[group].mean() for group in groups])
