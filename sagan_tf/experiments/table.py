"""The records of a suite's runs, and the table that is made from them alone."""

import fnmatch
import itertools
import warnings
from collections.abc import Iterable, Set
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import scipy.stats

from sagan_tf import files
from sagan_tf.errors import UserError
from sagan_tf.experiments.suite import CONTROL, natural

__all__ = ["COLUMNS", "RunRecord", "comma_separated", "difference", "markdown", "read", "read_records", "values", "write_table"]

# What the paper compares an arm with: the steps of stabilisation with the baseline, a block with none.
_CONTROLS = {"sn_gd": "baseline", "sn_gd_ttur": "baseline", "baseline": ""}


class RunRecord(TypedDict):
    """What a run came to: the content of RESULTS/ARM-seedN.json."""

    arm: str
    also: list[str]  # The other arms that the run serves.
    seed: int
    suite: str
    scale: dict[str, Any]
    left_out: dict[str, str]
    settings: dict[str, Any]  # Those that differ from the defaults.
    versions: dict[str, str]
    commits: list[str]
    machine: str
    seconds: dict[str, float]  # By command: train, evaluate.
    diverged: str  # What the training said if it ended because a value was not finite.
    metrics: dict[str, float]
    protocol: dict[str, Any]
    final: dict[str, float]  # The last values of the curves.
    agreement_first_above_half: int | None  # Step; None: it never was.
    curves: dict[str, dict[str, list]]  # "steps" and "values" by name.


class Column(NamedTuple):
    """A column of the table."""

    name: str
    heading: str
    style: str
    compared: bool = True  # With the control; not where not every run has a value, or it is no outcome.
    signed: bool = True  # Gamma is not: the convolution before it can turn its own sign.
    by_median: bool = False  # Of minutes: one run on a machine that was shared or asleep spoils a mean.


COLUMNS = (
    Column("agreement", "agreement", ".3f"),
    Column("first_above_half", "first above 0.5 at step", ",.0f", compared=False),
    Column("deviation_over_z", "deviation over z", ".3f"),
    Column("fid", "FID", ".2f"),
    Column("inception_score", "IS", ".2f"),
    Column("intra_fid", "intra-FID", ".2f"),
    Column("precision", "precision", ".3f"),
    Column("recall", "recall", ".3f"),
    Column("gamma_generator", "size of G's gamma", ".3f", compared=False, signed=False),
    Column("gamma_discriminator", "size of D's gamma", ".3f", compared=False, signed=False),
    Column("minutes", "minutes of training", ".1f", compared=False, by_median=True),
)


def write_table(results: str) -> str:
    """Writes `table.md` and `table.csv` from the records of a directory, and returns the former's text.

    Raises:
      UserError: if there are no records, or they do not belong together.
    """
    records = read_records(results)
    text = markdown(records)
    files.write(files.join(results, "table.md"), text)
    files.write(files.join(results, "table.csv"), comma_separated(records))
    return text


def read_records(results: str) -> list[RunRecord]:
    """Returns the records of a directory, by arm and seed.

    Raises:
      UserError: if there are none, one cannot be read, or they are of different suites or scales.
    """
    paths = [files.join(results, name) for name in fnmatch.filter(files.listing(results), "[!.]*-seed*.json")]
    if not paths:
        raise UserError(f"--results={results} holds no records (ARM-seedN.json): run a suite first.")
    records = sorted(map(read, paths), key=lambda record: (natural(record["arm"]), record["seed"]))
    if any((record["suite"], record["scale"]) != (records[0]["suite"], records[0]["scale"]) for record in records):
        raise UserError(f"--results={results} holds records of different suites or scales: keep them in different directories.")
    return records


def read(path: str, keys: Set[str] = RunRecord.__required_keys__) -> Any:
    """Reads a record, which has these keys.

    Raises:
      UserError: if it cannot be read, or is none.
    """
    try:
        record = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and run again.") from error
    if not isinstance(record, dict) or keys - record.keys():
        raise UserError(f"{path} is not the record of a run: move it elsewhere.")
    return record


def markdown(records: list[RunRecord]) -> str:
    """Returns the table of these records: every arm, its difference from its control, and every run."""
    arms, table = _by_arm(records), _statistics(records)
    columns = [column for column in COLUMNS if column.name in set(table["value"])]
    headings = [column.heading for column in columns]
    summaries = {(row.arm, row.value): _summary(row) for row in table.itertuples()}
    rows = []
    for name, arm in arms.items():
        diverged = sum(bool(record["diverged"]) for record in arm)
        runs = f"{len(arm)}" + f" ({diverged} diverged)" * bool(diverged)
        rows.append([name, runs, *(summaries.get((name, column.name), "") for column in columns)])
    lines = [*_intro(records), "", *_rows(["arm", "runs", *headings], rows)]

    compared = [column for column in columns if column.compared]
    deltas = {(row.arm, row.value): _delta(row) for row in table.itertuples()}
    rows = [
        [name, control, *(deltas.get((name, column.name), "") for column in compared)]
        for name in arms
        if (control := _control(name, arms))
    ]
    if rows and compared:
        lines += ["", "Differences, with the 95% interval of Welch's t where there are two runs of each arm:", ""]
        lines += _rows(["arm", "from", *(column.heading for column in compared)], rows)

    rows = []
    for record in records:
        found = values(record)
        cells = [f"{found[column.name]:{column.style}}" if column.name in found else "" for column in columns]
        cells = ["never" if cell == "inf" else cell for cell in cells]
        rows.append([" = ".join([record["arm"], *record["also"]]), str(record["seed"]), *cells])
    lines += ["", "Every run:", "", *_rows(["arm", "seed", *headings], rows)]
    notes = [f"- {record['arm']}, seed {record['seed']}: {record['diverged']}" for record in records if record["diverged"]]
    lines += ["", "Diverged, and in no mean:", "", *notes] if notes else []
    return "\n".join(lines) + "\n"


def comma_separated(records: list[RunRecord]) -> str:
    """Returns the table as CSV, a line for each value of each arm."""
    names = ["arm", "value", "runs", "mean", "sd", "control", "difference", "low", "high", "seeds", "values"]
    return _statistics(records)[names].to_csv(index=False, float_format="%.6g", lineterminator="\n")


def values(record: RunRecord) -> dict[str, float]:
    """Returns the numbers of a run that the table has columns for; `first_above_half` is infinite if it never was."""
    found = {"minutes": record["seconds"]["train"] / 60}
    if not record["diverged"]:  # What it had come to before says nothing about where it went.
        found |= record["metrics"] | record["final"]
        if "agreement" in record["curves"]:
            first = record["agreement_first_above_half"]
            found["first_above_half"] = np.inf if first is None else first
    present = [column for column in COLUMNS if column.name in found]
    return {column.name: float(found[column.name] if column.signed else abs(found[column.name])) for column in present}


def difference(numbers: np.ndarray | pd.Series, control: np.ndarray | pd.Series) -> tuple[float, float, float]:
    """Returns the difference of two means and its 95% interval (Welch's t): NaN for its ends with fewer than two runs in either."""
    if not (len(numbers) and len(control)):
        return np.nan, np.nan, np.nan
    delta = float(numbers.mean() - control.mean())
    if min(len(numbers), len(control)) < 2:
        return delta, np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # All numbers of an arm may be equal.
        interval = scipy.stats.ttest_ind(numbers, control, equal_var=False).confidence_interval(0.95)
    return delta, float(interval.low), float(interval.high)


def _by_arm(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    arms: dict[str, list[RunRecord]] = {}
    for record in records:
        for name in (record["arm"], *record["also"]):
            arms.setdefault(name, []).append(record)
    return {name: arms[name] for name in sorted(arms, key=natural)}


def _control(name: str, arms: dict[str, list[RunRecord]]) -> str:
    """Returns the arm that this one is compared with; empty if it is one, has none, or shares its runs."""
    control = _CONTROLS.get(name, CONTROL)
    return control if control in arms and arms[control] != arms[name] else ""


def _statistics(records: list[RunRecord]) -> pd.DataFrame:
    """Returns a row for each value of each arm; of numbers that are infinite, only how many there are."""
    arms, rows, names = _by_arm(records), [], [column.name for column in COLUMNS]
    frames = {arm: pd.DataFrame(map(values, runs), [run["seed"] for run in runs], names, float) for arm, runs in arms.items()}
    for arm, column in itertools.product(arms, COLUMNS):
        every = frames[arm][column.name].dropna()
        if every.empty:
            continue
        control = _control(arm, arms) if column.compared else ""
        numbers, others = (each[np.isfinite(each)] for each in (every, frames.get(control, frames[arm][:0])[column.name]))
        delta, low, high = difference(numbers, others)
        row = {"arm": arm, "value": column.name, "column": column, "all": len(every), "runs": len(numbers)}
        row |= {"mean": numbers.mean(), "sd": numbers.std(), "median": numbers.median(), "control": control}
        row |= {"difference": delta, "low": low, "high": high, "seeds": " ".join(map(str, every.index))}
        rows.append(row | {"values": " ".join("never" if np.isinf(each) else f"{each:.6g}" for each in every)})
    return pd.DataFrame(rows)


def _summary(row: Any) -> str:
    """Returns mean and standard deviation, or the median; of those that are numbers, saying how many, where some are infinite."""
    style = row.column.style
    if row.column.by_median:
        return f"{row.median:{style}}"
    text = f"{row.mean:{style}}" if row.runs else "never"
    text += f" ± {row.sd:{style}}" if row.runs > 1 else ""
    return text if row.runs == row.all else f"{text} ({row.runs} of {row.all} runs)"


def _delta(row: Any) -> str:
    style = row.column.style
    interval = f" [{row.low:+{style}}, {row.high:+{style}}]" if np.isfinite(row.low) else ""
    return f"{row.difference:+{style}}{interval}" if np.isfinite(row.difference) else ""


def _rows(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def _intro(records: list[RunRecord]) -> list[str]:
    """Returns title, scale, protocol and origin."""
    first = records[0]
    title, lines = f"# {first['suite']}", []
    if scale := first["scale"]:
        settings = ", ".join(f"{name}={value}" for name, value in scale["settings"].items())
        title += f" at scale {scale['name']} ({settings})"
        places = [f"{before} became {after}" for before, after in sorted(scale["places"].items(), key=lambda item: int(item[0]))]
        lines += ["", "The settings in the title replace those of every arm alike."]
        lines += [f"Places of the block: {', '.join(places)}."] if places else []
    left_out = {name: why for record in records for name, why in record["left_out"].items()}
    if left_out:
        lines += ["", f"Left out: {'; '.join(f'{name} ({left_out[name]})' for name in sorted(left_out, key=natural))}."]
    lines += ["", "Mean ± standard deviation over the seeds; of the minutes, the median. Made from the records beside it by"]
    lines += ["`sagan-reproduce --tabulate --results=DIR`."]
    protocols = sorted(
        {
            f"{p['num_samples']:,} samples against {p['real_images']:,} images of {p['dataset']}, classifier {p['classifier']}, "
            f"{p['resize']}, {p['batch_norm']} batch norm"
            for p in (record["protocol"] for record in records)
            if p
        }
    )
    lines += ["", f"Metrics: {'; '.join(protocols)}."] if protocols else []
    alike = {k: v for k, v in first["settings"].items() if all(k in r["settings"] and r["settings"][k] == v for r in records)}
    lines += ["", f"Settings of every run: {', '.join(f'{name}={value}' for name, value in alike.items())}."] if alike else []
    origins = sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()})
    commits = sorted({commit[:12] + commit[40:] for record in records for commit in record["commits"]})
    machines = sorted({record["machine"] for record in records})
    lines += ["", f"Made with {', '.join(origins)}; commit {', '.join(commits)}; {', '.join(machines)}."]
    return [title, *lines]
