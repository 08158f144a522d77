"""A report says what the run wrote: its curves, metrics and settings, in one file that needs no other."""

import dataclasses
import html.parser
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from processes import Command

from sagan_tf import networks
from sagan_tf.commands.report import split_directories
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.networks import model_state
from sagan_tf.report import page, plots
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.run import Run
from sagan_tf.runs.scalars import read_scalars

CONFIG = Config(image_size=32, gf_dim=2, df_dim=2, z_dim=4, num_classes=3, attention_resolution=8, batch_size=4, deterministic=True)
PROTOCOL = {"num_samples": 50, "classifier": "faces", "versions": {"keras": "3"}}
LOSSES = {step: 0.1 * step for step in range(10, 60, 10)}


def write_scalars(directory, values, suffix=""):
    """Writes `{tag: {step: value}}` as one event file."""
    writer = tf.summary.create_file_writer(os.path.join(directory, "summaries"), filename_suffix=suffix)
    for tag, points in values.items():
        for step, value in points.items():
            with writer.as_default(step):
                tf.summary.scalar(tag, value)
    with writer.as_default(50):
        tf.summary.image("samples", np.zeros((1, 4, 4, 3), np.uint8))
    writer.close()


def write_records(directory, points, protocol=PROTOCOL, warnings=()):
    with open(os.path.join(directory, "metrics.jsonl"), "a", encoding="utf-8") as file:
        for step, values in points.items():
            file.write(json.dumps({"step": step, "values": values, "protocol": protocol, "warnings": list(warnings)}) + "\n")


def write_run(directory, settings=CONFIG, gammas=(0.8, -0.2)):
    """Writes what training leaves."""
    os.makedirs(os.path.join(directory, "samples"))
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        file.write(settings.to_json())
    write_scalars(
        directory,
        {
            "training/generator_loss": LOSSES,
            "logits/real": {10: 1.0, 20: 2.0},
            "gamma/generator": {10: 0.0, 20: 0.5},
            "images_per_second": {10: 30.0, 20: 50.0},
            "novel/thing": {10: 1.0, 20: 3.0},
            "metrics/fid": {10: -1.0},
        },
    )
    keras.utils.set_random_seed(0)
    models = networks.generator(settings), networks.discriminator(settings)
    for model, gamma in zip(models, gammas, strict=True):
        model.get_layer("attention").gamma.assign(gamma)
    checkpoints = Checkpoints(str(directory))
    checkpoints.save(50, model_state("generator", models[0]) | model_state("discriminator", models[1]))
    checkpoints.wait()
    for step in (9, 10):
        Image.new("RGB", (8 * 34 + 2, 3 * 34 + 2), (step, 0, 0)).save(os.path.join(directory, "samples", f"{step:08d}.png"))
    return str(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = write_run(tmp_path_factory.mktemp("runs") / "one")
    write_records(directory, {10: {"fid": 30.0, "inception_score": 2.0}, 20: {"fid": 10.5, "inception_score": 4.0}})
    write_records(directory, {30: {"fid": 20.25, "inception_score": 3.0}}, warnings=["few <images>"])
    return directory


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    directory = write_run(tmp_path_factory.mktemp("runs") / "two", CONFIG.replace(batch_size=8, seed=3))
    write_records(directory, {20: {"fid": 9.0}, 40: {"fid": 7.75}}, PROTOCOL | {"num_samples": 60})
    return directory


@pytest.fixture(scope="module")
def document(trained):
    return page.page([page.load(trained)])


class Outline(html.parser.HTMLParser):
    """Collects what a page refers to, its tables as rows of texts, and its images."""

    def __init__(self, document):
        super().__init__()
        self.sources, self.rows, self.ids, self.text = [], [], [], []
        self.feed(document)
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text.append(data)
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th", "span"):
            self.rows[-1][-1] += data


class ScalarsTest:
    def test_curves_are_what_was_written(self, trained):
        run = page.load(trained)
        steps, values = run.curves["training/generator_loss"]
        np.testing.assert_array_equal(steps, list(LOSSES))
        np.testing.assert_allclose(values, list(LOSSES.values()), rtol=1e-6)
        assert "samples" not in run.curves
        assert run.step == 50

    def test_of_a_step_written_twice_the_later_counts(self, tmp_path):
        """The first process went to step 40, the second continued at 20."""
        write_scalars(tmp_path, {"a": {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}}, ".z")
        write_scalars(tmp_path, {"a": {30: -3.0, 40: -4.0, 50: -5.0}}, ".a")
        steps, values = read_scalars(tmp_path / "summaries")["a"]
        assert steps.tolist() == [10, 20, 30, 40, 50]
        assert values.tolist() == [1.0, 2.0, -3.0, -4.0, -5.0]

    def test_file_cut_off_is_read_as_far_as_it_goes(self, tmp_path):
        write_scalars(tmp_path, {"a": {step: float(step) for step in range(100)}})
        (name,) = os.listdir(tmp_path / "summaries")
        content = (tmp_path / "summaries" / name).read_bytes()
        (tmp_path / "summaries" / name).write_bytes(content[: len(content) // 2])
        steps, values = read_scalars(tmp_path / "summaries")["a"]
        assert 30 < len(steps) < 70
        np.testing.assert_array_equal(steps, values)

    def test_metrics_come_with_their_protocol_from_the_record(self, trained, tmp_path):
        curves = page.load(trained).curves
        assert [each.tolist() for each in curves["metrics/fid"]] == [[10, 20, 30], [30.0, 10.5, 20.25]]
        write_records(tmp_path, {10: {"fid": 1.0}, 20: {"fid": 2.0}})
        write_records(tmp_path, {20: {"fid": 5.0}}, PROTOCOL | {"seed": 1})
        write_records(tmp_path, {20: {"fid": 3.0}})
        curves = page.metric_curves(Run(str(tmp_path), CONFIG).records)
        assert curves["metrics/fid"][1].tolist() == [1.0, 3.0]
        assert curves["metrics/fid (protocol 2)"][1].tolist() == [5.0]

    def test_long_curves_are_thinned_to_means(self):
        steps = np.arange(1000)
        thinned = plots.thin((steps, steps * 2.0), 100)
        np.testing.assert_allclose(thinned[0], steps.reshape(100, 10).mean(1))
        np.testing.assert_allclose(thinned[1], 2 * thinned[0])
        assert plots.thin((steps, steps), 1000)[0] is steps


class PageTest:
    def test_needs_no_other_file(self, document):
        outline = Outline(document)
        assert outline.sources
        assert all(source.startswith(("data:image/", "#")) for source in outline.sources)
        assert len(outline.ids) == len(set(outline.ids))
        assert "<script" not in document
        assert len(document) < 3_000_000

    def test_states_the_metrics_and_their_protocol(self, document):
        rows = Outline(document).rows
        assert ["fid", "20.25", "30", "10.5", "20"] in rows
        assert ["inception_score", "3", "30", "4", "20"] in rows
        assert ["num_samples", "50"] in rows
        assert ["versions", "keras 3"] in rows
        assert "few &lt;images&gt;" in document

    def test_settings_that_differ_come_first(self, document):
        rows = [row for row in Outline(document).rows if row[0].startswith("--")]
        own = {field.name for field in dataclasses.fields(Config) if getattr(CONFIG, field.name) != field.default}
        assert {row[0] for row in rows[: len(own)]} == {f"--{name}" for name in own}
        assert ["--batch_size", "4", "256"] in rows
        assert len(rows) == len(dataclasses.fields(Config)) - 1

    def test_has_the_panels_of_what_was_recorded(self, document, trained):
        run = page.load(trained)
        titles = [title for title, _, _ in plots.panels({run.name: run.curves})]
        assert titles == ["FID", "Inception Score", "Losses", "Logits of the discriminator", "Gamma of the attention blocks"] + [
            "Images per second",
            "Novel",
        ]
        texts = Outline(document).text
        assert all(title in texts for title in titles)

    def test_shows_the_last_grid_and_attention(self, document, trained):
        assert "step 10: a class per row" in document
        with Image.open(os.path.join(trained, "samples", "00000010.png")) as image:
            assert f'src="{page.picture(image).source}"' in document
        assert document.count("<img") == 3
        without = dataclasses.replace(page.load(trained), run=Run(trained, CONFIG.replace(attention_resolution=0)))
        assert "no self-attention" in page.page([without])

    def test_large_pictures_become_small(self):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1600, 3), dtype=np.uint8))
        shown = page.picture(noise)
        assert (shown.width, shown.height) == (1400, 1312)
        assert "data:image/webp" in shown.source

    def test_curve_of_the_plot_has_the_values(self):
        """The line's corners, scaled to the axes, are the values."""
        values = np.array([3.0, 1.0, 2.0, 5.0])
        svg = plots.plot("t", "", ["a/b"], {"r": {"a/b": (np.array([0, 10, 20, 30]), values)}}, "p")
        colour = f"stroke: {plots.COLOURS[0]}"
        path = next(part for part in svg.split("<path")[1:] if colour in part.split("/>")[0])
        words = path.split('d="')[1].split('"')[0].split()
        y = -np.array([float(words[i + 2]) for i, word in enumerate(words) if word in "ML"])
        np.testing.assert_allclose((y - y[1]) / (y[3] - y[1]), (values - 1) / 4, atol=1e-4)
        assert "currentColor" in svg
        assert plots.INK not in svg


class ComparisonTest:
    def test_states_last_and_best_and_what_differs(self, trained, other):
        runs = [page.load(trained), page.load(other)]
        document = page.page(runs)
        rows = Outline(document).rows
        assert ["fid", "20.25 (step 30); best 10.5 (step 20)", "7.75 (step 40); best 7.75 (step 40)"] in rows
        assert ["inception_score", "3 (step 30); best 4 (step 20)", ""] in rows
        assert [row for row in rows if row[0].startswith("--")] == [["--batch_size", "4", "8"], ["--seed", "0", "3"]]
        assert "measured differently" in document
        assert ["num_samples", "50", "60"] in rows
        assert len(Outline(document).ids) == len(set(Outline(document).ids))

    def test_overlays_a_curve_of_each_run(self, trained, other):
        runs = {run.name: run.curves for run in (page.load(trained), page.load(other))}
        svg = plots.plot("Losses", "", ["training/generator_loss"], runs, "p")
        assert all(f"stroke: {colour}" in svg for colour in plots.COLOURS[:2])
        assert ">one<" in svg
        assert ">two<" in svg


class RefusalTest:
    @pytest.fixture
    def refusal(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)

        def call(model_dir, output="out.html"):
            with pytest.raises(UserError) as error:
                page.write(split_directories(model_dir), output)
            assert "\n" not in str(error.value)
            assert not os.path.exists("out.html")
            return str(error.value)

        return call

    def test_directories(self, refusal, trained, tmp_path):
        assert "--model_dir is missing" in refusal("")
        assert "--output is missing" in refusal(trained, output="")
        assert "does not exist" in refusal("nowhere")
        assert "does not exist" in refusal(f"{trained},nowhere")
        assert "names a run twice" in refusal(f"{trained},{trained}/")
        os.mkdir("empty")
        assert "not the directory of a training run" in refusal("empty")
        (tmp_path / "empty" / "config.json").write_text(CONFIG.to_json())
        assert "nothing recorded yet" in refusal("empty")
        (tmp_path / "empty" / "metrics.jsonl").write_text("{")
        assert "nothing recorded yet" in refusal("empty")  # Half a line is passed over.

    def test_output(self, refusal, trained, tmp_path):
        (tmp_path / "file").write_text("")
        assert "cannot be written" in refusal(trained, output="file/out.html")
        os.mkdir("folder")
        assert "is a directory" in refusal(trained, output="folder")

    def test_damaged_grid(self, refusal, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "copy")
        (tmp_path / "copy" / "samples" / "00000011.png").write_bytes(b"x")
        assert "00000011.png cannot be read" in refusal("copy")


class CommandTest:
    def test_writes_the_page_and_says_so(self, trained, other, tmp_path):
        output = tmp_path / "new" / "out.html"
        command = Command("report", f"--model_dir={trained},{other}", f"--output={output}")
        assert command.wait() == 0, command.stderr
        assert f"Report in {output} ({output.stat().st_size / 1e6:.1f} MB): open it in any browser." in command.stdout
        assert "one and two" in output.read_text(encoding="utf-8")

    def test_directory_with_a_comma_is_one_run(self, tmp_path):
        os.mkdir(tmp_path / "a,b")
        assert split_directories(f"{tmp_path}/a,b") == [f"{tmp_path}/a,b"]
        assert split_directories("a, b") == ["a", "b"]
        assert split_directories("GS://bucket/a/,gs://bucket/b") == ["gs://bucket/a", "gs://bucket/b"]
