"""The plot of a suite: the curves of every run, and its scores."""

import io

import numpy as np
from matplotlib.figure import Figure

from sagan_tf import files
from sagan_tf.experiments.table import COLUMNS, RunRecord, read_records, values

__all__ = ["write_plot"]

_CURVES = ("agreement", "deviation_over_z", "gamma_generator")
_SCORES = ("agreement", "fid", "inception_score", "intra_fid")


def write_plot(results: str) -> None:
    """Draws `plot.png` beside the records: the curves of every run and their mean by arm, and the scores of every run.

    Raises:
      UserError: if there are no records, or they do not belong together.
    """
    arms: dict[str, list[RunRecord]] = {}
    for record in read_records(results):
        arms.setdefault(" = ".join([record["arm"], *record["also"]]), []).append(record)
    numbers = [[values(record) for record in arm] for arm in arms.values()]
    columns = {column.name: column for column in COLUMNS}
    curves = [name for name in _CURVES if any(name in record["curves"] for arm in arms.values() for record in arm)]
    scores = [name for name in _SCORES if any(name in found for arm in numbers for found in arm)]
    rows = max(1, (len(curves) + len(scores) + 1) // 2)
    figure = Figure(figsize=(12, 4.5 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, 2, squeeze=False).flat)
    for curve, axes in zip(curves, panels, strict=False):
        for number, (name, arm) in enumerate(arms.items()):
            found = [record["curves"][curve] for record in arm if curve in record["curves"] and not record["diverged"]]
            lines = [each["values"] if columns[curve].signed else np.abs(each["values"]) for each in found]
            for each, line in zip(found, lines, strict=True):
                axes.plot(each["steps"], line, color=f"C{number}", alpha=0.25, linewidth=0.8)
            if found and all(each["steps"] == found[0]["steps"] for each in found):
                axes.plot(found[0]["steps"], np.mean(lines, axis=0), color=f"C{number}", label=f"{name} ({len(found)})")
        axes.set(xlabel="step", ylabel=columns[curve].heading)
    for score, axes in zip(scores, panels, strict=False):
        for number, runs in enumerate(numbers):
            points = [run[score] for run in runs if score in run]
            axes.plot(points, [number] * len(points), "o", color=f"C{number}", alpha=0.6)
        axes.set(xlabel=columns[score].heading, yticks=range(len(arms)), yticklabels=list(arms))
        axes.invert_yaxis()
    for axes in panels:
        axes.set_visible(False)
    if curves:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, title="arm (runs); bold: their mean")
    figure.savefig(content := io.BytesIO(), format="png", dpi=110, metadata={"Software": None})
    files.write(files.join(results, "plot.png"), content.getvalue())
