r"""What version 0.1 wrote can still be read: a run, and what was exported of it.

`tests/golden/version_0_1` was made by version 0.1.0 with TensorFlow 2.21:

  sagan-train --model_dir=run --dataset=twins --image_size=32 --gf_dim=1 --df_dim=2 --z_dim=4 --attention_resolution=8 \
    --batch_size=4 --generator_learning_rate=0.01 --discriminator_learning_rate=0.004 --ema_decay=0.5 --train_steps=4 \
    --steps_per_loop=2 --eval_every_steps=2 --classifier=embedded --num_samples=64 --save_summaries_steps=2 \
    --save_samples_steps=4 --save_checkpoint_steps=4 --save_checkpoint_secs=0 --deterministic
  sagan-export --model_dir=run --export_dir=exported

`arrays.npz` holds what version 0.1 then computed, and its whole state one step later. The dataset twins and the classifier
embedded went with version 0.2: `images.npz` holds the images of twins by which statistics are known, and those of that step.
"""

import functools
import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from processes import Command

import sagan_tf
import sagan_tf.networks  # Registers the layers of .keras files.
from sagan_tf import data, pixels, sampling
from sagan_tf.export import formats
from sagan_tf.gallery import modes
from sagan_tf.metrics.classifiers import Classifier
from sagan_tf.metrics.evaluator import Evaluator, Protocol
from sagan_tf.metrics.record import fingerprint
from sagan_tf.training import Trainer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "version_0_1"
# Of one machine's rounding against another's.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def expected():
    """Returns what version 0.1 computed."""
    return dict(np.load(GOLDEN / "arrays.npz"))


@pytest.fixture(scope="module")
def run():
    """Returns the run; it reads its networks once, since to build them takes most of the time."""
    opened = sagan_tf.load_run(str(GOLDEN / "run"))
    opened.networks = functools.cache(opened.networks)
    return opened


class Twins:
    """The dataset of version 0.1, as far as its images are kept; in the place of others it gives the first."""

    num_examples, num_classes, class_names = 2**17, 6, ("red", "green", "blue", "yellow", "magenta", "cyan")

    def __init__(self):
        kept = np.load(GOLDEN / "images.npz")
        self.indices, self.images, self.labels = (tf.constant(kept[name]) for name in ("indices", "images", "labels"))

    def examples(self, indices):
        places = tf.argmax(indices[:, None] == self.indices, axis=1)
        return {"images": tf.cast(tf.gather(self.images, places), tf.float32) / 127.5 - 1, "labels": tf.gather(self.labels, places)}


class RunTest:
    def test_settings(self, run):
        saved = json.loads((GOLDEN / "run" / "config.json").read_text())
        assert len(saved) == 55
        assert saved.pop("twins_cells") == 3  # Gone, with the dataset.
        assert {name: getattr(run.config, name) for name in saved} == saved

    def test_networks(self, run, expected):
        assert run.steps == [2, 4]
        for name, use_ema in (("ema_generator", True), ("generator", False)):
            networks = run.networks(4, use_ema)
            images = networks.generator([expected["z"], expected["labels"]], training=False)
            np.testing.assert_allclose(images, expected[name], **TOLERANCE)
        logits = networks.discriminator([expected["generator"], expected["labels"]], training=False)
        np.testing.assert_allclose(logits, expected["discriminator"], **TOLERANCE)

    def test_whole_state(self, run):
        trainer = Trainer(run.config)
        assert run.checkpoints.restore(trainer.state()) == 4
        assert int(trainer.step) == int(trainer.generator_optimizer.iterations) == 4

    def test_records(self, run):
        assert [record.step for record in run.records] == [2, 4]
        assert run.records[1].values["fid"] == 82.83996399473415
        assert run.records[1].protocol["versions"]["sagan_tf"] == "0.1.0"
        assert "".join(f"{record.to_json()}\n" for record in run.records) == (GOLDEN / "run" / "metrics.jsonl").read_text()

    def test_best_checkpoint_is_that_of_the_protocol(self, run):
        pinned = (GOLDEN / "run" / "checkpoints" / "pinned.json").read_text()
        assert pinned == f'{{"best_fid-{fingerprint(run.records[0].protocol)[:8]}": 2}}\n'
        assert run.checkpoints.pinned() == {2}

    def test_curves_and_samples(self, run):
        curves = run.scalars()
        assert curves["training/generator_loss"][0].tolist() == [2, 4]
        np.testing.assert_allclose(curves["metrics/fid"][1], [record.values["fid"] for record in run.records], rtol=1e-6)
        assert run.last_grid() == (4, str(GOLDEN / "run" / "samples" / "00000004.png"))

    def test_protocol_is_still_that_of_the_records(self, run):
        """What was recorded then compares with what is measured now."""
        classifier = Classifier("embedded", lambda images: (images, images), "0540e9ad4b3f1012", "tf1_bilinear_32")
        evaluator = Evaluator(Twins(), classifier, Protocol(num_samples=64), dataset="twins")
        sampler = sampling.sampler(run.networks(4).generator, run.config, use_ema=True)
        protocol, recorded = evaluator.protocol_of(sampler), run.records[1].protocol
        assert evaluator.protocol_of(sampler.facts) == protocol
        assert protocol | {"versions": 0} == recorded | {"versions": 0}
        assert protocol["versions"].keys() == recorded["versions"].keys()

    @pytest.mark.slow
    def test_continues(self, expected, run, tmp_path, monkeypatch):
        shutil.copytree(GOLDEN / "run", tmp_path / "run")
        monkeypatch.setattr(data, "open_source", lambda config: Twins())
        monkeypatch.setattr(data, "_ROUNDS", 4)  # As then.
        changes = {"model_dir": str(tmp_path / "run"), "train_steps": 5, "eval_every_steps": 0, "deterministic": False}
        checkpoints = sagan_tf.train(run.config.replace(**changes)).checkpoints
        assert checkpoints.steps() == [2, 4, 5]
        reader = tf.train.load_checkpoint(checkpoints.path(5))
        state = {name.removeprefix("step_5/"): value for name, value in expected.items() if name.startswith("step_5/")}
        assert reader.get_variable_to_shape_map().keys() == state.keys()
        for name, value in state.items():
            # Batch norm takes a bias before it away: its gradient is rounding alone, which Adam scales up to a whole step.
            if not re.fullmatch(r"(ema_)?generator/block_.*/(bias|moving_mean)", name):
                np.testing.assert_allclose(reader.get_tensor(name), value, rtol=1e-5, atol=1e-5, err_msg=name)

    def test_is_sampled(self, run, tmp_path):
        images = sampling.generate(run.generator, *sampling.grid_inputs(4, 6, 0))
        of_then = np.asarray(Image.open(run.last_grid()[1]), int)
        assert np.abs(pixels.grid(images, sampling.GRID_COLUMNS) - of_then).max() <= 1
        modes.draw(run, modes.Request(output=str(tmp_path / "grid.png")))
        assert np.asarray(Image.open(tmp_path / "grid.png")).shape == of_then.shape

    def test_is_exported_with_what_is_known_of_it(self, run, expected, tmp_path):
        formats.export_run(run, str(tmp_path))
        signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
        images = signature(z=tf.constant(expected["z"]), labels=tf.constant(expected["labels"]))["images"]
        np.testing.assert_allclose(images, expected["ema_generator"], **TOLERANCE)
        card = (tmp_path / "README.md").read_text()
        for text in (
            "Trained on `twins`.",
            "| fid | 82.84 |",
            "| classifier | `embedded` |",
            "the package's own classifier compare",
        ):
            assert text in card

    @pytest.mark.parametrize(
        ("name", "flags", "sentence"),
        [
            (
                "train",
                ["--train_steps=5"],
                "The dataset twins was removed in 0.2: train on --dataset=faces, into a new --model_dir.",
            ),
            ("evaluate", ["--classifier=faces"], "The dataset twins was removed in 0.2: train on --dataset=faces, into a new"),
            ("evaluate", ["--dataset=faces"], "The classifier embedded was removed in 0.2, with the dataset twins: pass --class"),
        ],
    )
    def test_is_neither_trained_on_nor_measured_by_what_is_gone(self, tmp_path, name, flags, sentence):
        shutil.copytree(GOLDEN / "run", tmp_path / "run")
        command = Command(name, f"--model_dir={tmp_path}/run", *flags)
        assert command.wait() == 1
        assert next(line for line in command.stderr.splitlines() if line.startswith("error: ")).startswith(f"error: {sentence}")
        assert "Traceback" not in command.stderr
        assert sagan_tf.load_run(str(tmp_path / "run")).steps == [2, 4]


class ExportTest:
    def test_saved_model(self, expected):
        signatures = tf.saved_model.load(str(GOLDEN / "exported")).signatures
        z, labels = tf.constant(expected["z"]), tf.constant(expected["labels"])
        attended = signatures["attention"](z=z, labels=labels)
        for images in (signatures["serving_default"](z=z, labels=labels)["images"], attended["images"]):
            np.testing.assert_allclose(images, expected["ema_generator"], **TOLERANCE)
        np.testing.assert_allclose(attended["attention"], expected["attention"], **TOLERANCE)
        drawn = signatures["sample"](labels=labels, seed=tf.constant(3))["images"].numpy()
        assert np.abs(drawn.astype(int) - expected["sample"]).max() <= 1

    def test_keras_files(self, expected):
        generator, discriminator = (
            keras.saving.load_model(GOLDEN / "exported" / "keras" / f"{name}.keras") for name in ("generator", "discriminator")
        )
        images = generator([expected["z"], expected["labels"]], training=False)
        np.testing.assert_allclose(images, expected["ema_generator"], **TOLERANCE)
        logits = discriminator([expected["generator"], expected["labels"]], training=False)
        np.testing.assert_allclose(logits, expected["discriminator"], **TOLERANCE)
