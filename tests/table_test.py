"""The table of a suite: it follows from the records alone, and says what they say."""

import json
import pathlib

import numpy as np
import pytest
import scipy.stats

from sagan_tf.errors import UserError
from sagan_tf.experiments import table as tool

ROOT = pathlib.Path(__file__).parent.parent


def made(arm, seed, fid, agreement=None, **changes):
    """Returns a record as if a run had come to these values."""
    curves = {"agreement": {"steps": [1], "values": [agreement]}} if agreement is not None else {}
    return {
        "arm": arm,
        "also": [],
        "seed": seed,
        "suite": "made",
        "scale": {},
        "left_out": {},
        "settings": {},
        "versions": {"keras": "3"},
        "commits": ["0" * 40],
        "machine": "none",
        "seconds": {"train": 60.0, "evaluate": 1.0},
        "diverged": "",
        "metrics": {"fid": fid},
        "protocol": {},
        "final": {"agreement": agreement} if agreement is not None else {},
        "agreement_first_above_half": 1 if (agreement or 0) > 0.5 else None,
        "curves": curves,
        **changes,
    }


class TableTest:
    @pytest.mark.parametrize("sizes", [(2, 2), (3, 6), (5, 3), (40, 30)])
    def test_interval_is_that_of_welch(self, sizes):
        rng = np.random.default_rng(0)
        values, control = rng.normal(3, 2, sizes[0]), rng.normal(1, 0.5, sizes[1])
        a, b = values.var(ddof=1) / len(values), control.var(ddof=1) / len(control)
        degrees = (a + b) ** 2 / (a**2 / (len(values) - 1) + b**2 / (len(control) - 1))
        half = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(a + b)
        delta = values.mean() - control.mean()
        assert tool.difference(values, control) == pytest.approx((delta, delta - half, delta + half))

    @pytest.mark.filterwarnings("error")
    def test_equal_numbers_have_an_interval_of_no_width(self):
        assert tool.difference(np.array([3.0, 3.0]), np.array([1.0, 1.0])) == (2, 2, 2)

    def test_one_run_has_no_interval(self):
        assert np.isnan(tool.difference(np.array([1.0]), np.array([1.0, 2.0]))[1:]).all()

    def test_rows_hold_mean_spread_and_every_run(self):
        records = [made("none", 0, 10.0, 0.1), made("none", 1, 12.0, 0.7), made("attention_8", 0, 5.0, 0.9)]
        text = tool.markdown(records)
        assert "| none | 2 | 0.400 ± 0.424 | 1 (1 of 2 runs) | 11.00 ± 1.41 | 1.0 |" in text
        assert "| attention_8 | 1 | 0.900 | 1 | 5.00 | 1.0 |" in text
        assert "| attention_8 | none | +0.500 | -6.00 |" in text
        assert "| none | 0 | 0.100 | never | 10.00 | 1.0 |" in text

    def test_minutes_are_summarised_by_their_median(self):
        records = [made("none", seed, 10.0, seconds={"train": 60.0 * minutes}) for seed, minutes in enumerate((7.0, 9.0, 142.0))]
        assert "| none | 3 | 10.00 ± 0.00 | 9.0 |" in tool.markdown(records)

    def test_settings_that_all_runs_share_are_told(self):
        records = [made("none", 0, 1.0), made("attention_8", 0, 1.0)]
        records[0]["settings"] = {"train_steps": 9, "gf_dim": 2}
        records[1]["settings"] = {"train_steps": 9, "gf_dim": 2, "beta1": 0.5}
        assert "Settings of every run: train_steps=9, gf_dim=2." in tool.markdown(records)

    def test_shared_run_is_in_the_row_of_each_arm(self):
        text = tool.markdown([made("none", 0, 10.0, also=["sn_gd_ttur"])])
        assert "| none | 1 | 10.00 | 1.0 |" in text
        assert "| sn_gd_ttur | 1 | 10.00 | 1.0 |" in text
        assert "| none = sn_gd_ttur | 0 | 10.00 | 1.0 |" in text
        assert "Difference" not in text

    def test_csv_holds_the_same_numbers(self):
        records = [made("none", seed, fid) for seed, fid in enumerate((10.0, 12.0))] + [
            made("attention_8", seed, fid) for seed, fid in enumerate((4.0, 5.0))
        ]
        line = next(line for line in tool.comma_separated(records).splitlines() if line.startswith("attention_8,fid"))
        cells = line.split(",")
        assert cells[2:7] == ["2", "4.5", "0.707107", "none", "-6.5"]
        low, high = tool.difference(np.array([4.0, 5.0]), np.array([10.0, 12.0]))[1:]
        assert [float(cells[7]), float(cells[8])] == pytest.approx([low, high], rel=1e-5)
        assert cells[9:] == ["0 1", "4 5"]

    def test_steps_of_stabilisation_are_compared_with_the_baseline(self):
        records = [made("none", 0, 10.0, also=["sn_gd_ttur"]), made("baseline", 0, 30.0), made("sn_gd", 0, 25.0)]
        text = tool.markdown(records)
        assert "| sn_gd | baseline | -5.00 |" in text
        assert "| sn_gd_ttur | baseline | -20.00 |" in text
        assert "| baseline | none |" not in text

    def test_different_suites_are_not_mixed(self, tmp_path):
        for number, suite in enumerate(("a", "b")):
            (tmp_path / f"none-seed{number}.json").write_text(json.dumps(made("none", number, 1.0, suite=suite)))
        with pytest.raises(UserError, match="different suites"):
            tool.write_table(str(tmp_path))

    def test_damaged_record_is_named(self, tmp_path):
        (tmp_path / "none-seed0.json").write_text("{")
        with pytest.raises(UserError, match=r"none-seed0\.json cannot be read"):
            tool.write_table(str(tmp_path))
        (tmp_path / "none-seed0.json").write_text('{"arm": "none"}')
        with pytest.raises(UserError, match=r"none-seed0\.json is not the record of a run"):
            tool.write_table(str(tmp_path))

    def test_title_says_the_scale(self):
        record = made("none", 0, 1.0)
        record["scale"] = {"name": "small", "settings": {"image_size": 32, "gf_dim": 8}, "places": {"64": 16}}
        record["left_out"] = {"attention_8": "8 of 128 px is 2 of 32 px"}
        text = tool.markdown([record])
        assert text.startswith("# made at scale small (image_size=32, gf_dim=8)\n")
        assert "Places of the block: 64 became 16." in text
        assert "Left out: attention_8 (8 of 128 px is 2 of 32 px)." in text

    def test_no_records(self, tmp_path):
        with pytest.raises(UserError, match="holds no records"):
            tool.write_table(str(tmp_path))
