"""Exports load without this package, compute what the generator computes, and say what they are."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import Command

from sagan_tf import networks, sampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.export import formats, saved_model
from sagan_tf.networks import model_state
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.run import load_run

LOAD_ALONE = """
import sys
sys.modules["sagan_tf"] = sys.modules["keras"] = None  # Importing either now fails.
import numpy as np
import tensorflow as tf
directory, inputs, outputs = sys.argv[1:]
arrays = np.load(inputs)
signatures = tf.saved_model.load(directory).signatures
images = signatures["serving_default"](z=tf.constant(arrays["z"]), labels=tf.constant(arrays["labels"]))["images"]
sample = signatures["sample"](labels=tf.constant(arrays["labels"]), seed=tf.constant(7))["images"]
attention = signatures["attention"](z=tf.constant(arrays["z"]), labels=tf.constant(arrays["labels"]))
np.savez(outputs, images=images, sample=sample, attention=attention["attention"], again=attention["images"])
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    config = Config(image_size=32, gf_dim=4, df_dim=2, z_dim=4, num_classes=3, attention_resolution=16)
    keras.utils.set_random_seed(0)
    generator = networks.generator(config)
    generator.get_layer("attention").gamma.assign(0.8)
    directory = tmp_path_factory.mktemp("export") / "model"
    saved_model.export(config, generator, str(directory))
    return generator, directory


class SavedModelTest:
    def test_loads_with_tensorflow_alone(self, exported, tmp_path):
        generator, directory = exported
        z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        labels = np.array([0, 1, 2, 2, 0], np.int32)
        np.savez(tmp_path / "in.npz", z=z, labels=labels)
        arguments = [str(directory), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
        subprocess.run([sys.executable, "-c", LOAD_ALONE, *arguments], check=True, cwd=tmp_path, timeout=120)
        result = np.load(tmp_path / "out.npz")
        expected = generator([tf.constant(z), tf.constant(labels)], training=False)
        np.testing.assert_allclose(result["images"], expected, atol=5e-6)
        np.testing.assert_allclose(result["again"], expected, atol=5e-6)
        assert result["attention"].shape == (5, 16, 16, 8, 8)
        np.testing.assert_allclose(result["attention"].sum((3, 4)), 1.0, rtol=1e-5)
        z_drawn = tf.random.stateless_normal([5, 4], [7, 0])
        drawn = generator([z_drawn, tf.constant(labels)], training=False)
        assert result["sample"].dtype == np.uint8
        assert np.abs(result["sample"] - np.rint((drawn.numpy() + 1) * 127.5)).max() <= 1

    def test_signatures_have_the_documented_names(self, exported):
        signatures = tf.saved_model.load(str(exported[1])).signatures
        assert set(signatures) == {"serving_default", "sample", "attention"}
        _, inputs = signatures["serving_default"].structured_input_signature
        assert inputs["z"] == tf.TensorSpec([None, 4], tf.float32, "z")
        assert inputs["labels"] == tf.TensorSpec([None], tf.int32, "labels")
        assert set(signatures["attention"].structured_outputs) == {"images", "attention"}

    def test_spectral_norms_are_folded(self, exported):
        names = [name for name, _ in tf.train.list_variables(str(exported[1] / "variables" / "variables"))]
        weights = sum(int(np.prod(v.shape)) for v in exported[0].variables if v.name != "u")
        shapes = [shape for name, shape in tf.train.list_variables(str(exported[1] / "variables" / "variables"))]
        assert names
        assert sum(int(np.prod(shape)) for shape in shapes if shape) - weights in range(-2, 3)

    @pytest.mark.parametrize("signature", ["serving_default", "attention"])
    def test_runs_in_saved_model_cli(self, exported, tmp_path, signature):
        generator, directory = exported
        z = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
        labels = np.array([2, 0, 1], np.int32)
        np.save(tmp_path / "z.npy", z)
        np.save(tmp_path / "labels.npy", labels)
        command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", str(directory)]
        command += ["--tag_set", "serve", "--signature_def", signature, "--inputs", "z=z.npy;labels=labels.npy"]
        subprocess.run([*command, "--outdir", "out"], check=True, cwd=tmp_path, timeout=120, capture_output=True)
        images, attention = networks.with_attention(generator)([tf.constant(z), tf.constant(labels)])
        np.testing.assert_allclose(np.load(tmp_path / "out" / "images.npy"), images, atol=1e-5)
        if signature == "attention":
            np.testing.assert_allclose(np.load(tmp_path / "out" / "attention.npy"), attention, atol=1e-5)


class LoadedTest:
    def test_draws_what_the_network_draws(self, exported):
        generator, directory = exported
        loaded = saved_model.load(str(directory))
        assert (loaded.image_size, loaded.z_dim, loaded.num_classes) == (32, 4, 3)
        assert loaded.gamma == pytest.approx(0.8)
        draws = sampling.Draws(seed=1, truncation=1.5)
        sampler = loaded.sampler(draws)
        assert sampler.facts == {"seed": 1, "truncation": 1.5, "generated_by": str(directory)}
        numbers, labels = tf.range(5, dtype=tf.int64), tf.constant([0, 1, 2, 2, 0])
        z = sampling.draw_z(numbers, 4, seed=1, truncation=1.5)
        np.testing.assert_allclose(sampler.draw(numbers, labels), generator([z, labels], training=False), atol=5e-6)
        images, maps = networks.with_attention(generator)([z, labels])
        for found, expected in zip(loaded.attend(z, labels), (images, maps), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_without_classes_or_attention(self, tmp_path):
        config = Config(image_size=32, gf_dim=1, df_dim=1, z_dim=2, num_classes=0, attention_resolution=0)
        saved_model.export(config, networks.generator(config), str(tmp_path / "out"))
        loaded = saved_model.load(str(tmp_path / "out"))
        assert (loaded.num_classes, loaded.gamma) == (0, None)
        with pytest.raises(UserError, match="has no attention signature: export a run"):
            loaded.attend(tf.zeros([1, 2]), tf.zeros([1], tf.int32))

    def test_refuses_what_is_no_export(self, tmp_path):
        with pytest.raises(UserError, match=f"--saved_model={tmp_path}/none does not exist"):
            saved_model.load(f"{tmp_path}/none")
        with pytest.raises(UserError, match=f"--saved_model={tmp_path} is not a SavedModel that sagan-export wrote"):
            saved_model.load(str(tmp_path))


def run_tflite(directory, z, labels):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = interpreter.Interpreter(str(directory / "generator.tflite"))
    return model.get_signature_runner("serving_default")(z=z, labels=labels)["images"]


def run_onnx(directory, z, labels):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(directory / "generator.onnx"))
    return session.run(["images"], {"z": z, "labels": labels})[0]


class OtherFormatsTest:
    @pytest.fixture(scope="class", params=[3, 0], ids=["conditional", "unconditional"])
    def both(self, request, tmp_path_factory):
        """A generator whose images take all of [-1, 1], and its export in every format."""
        pytest.importorskip("tf2onnx")
        classes = request.param
        config = Config(
            image_size=32, gf_dim=4, df_dim=2, z_dim=4, num_classes=classes, attention_resolution=16, batch_norm_decay=0.5
        )
        keras.utils.set_random_seed(0)
        generator = networks.generator(config)
        generator.get_layer("attention").gamma.assign(0.8)
        for layer in generator.layers:
            if layer.name == "batch_norm":
                layer.gamma.assign(tf.fill(layer.gamma.shape, 3.0))
        z = tf.random.stateless_normal([32, 4], [1, 2])
        for _ in range(10):  # Moving averages that are not those of the start.
            generator([z, tf.range(32) % max(classes, 1)], training=True)
        directory = tmp_path_factory.mktemp("formats") / "model"
        saved_model.export(config, generator, str(directory))
        formats.write_tflite(str(directory))
        formats.write_onnx(str(directory))
        return generator, directory, classes

    @pytest.mark.parametrize("batch", [1, 5])
    @pytest.mark.parametrize("run", [run_tflite, run_onnx], ids=["tflite", "onnx"])
    def test_gives_the_images_of_the_network(self, both, run, batch):
        generator, directory, classes = both
        z = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        labels = (np.arange(batch) % max(classes, 1)).astype(np.int32)
        expected = generator([tf.constant(z), tf.constant(labels)], training=False).numpy()
        assert expected.std() > 0.3
        # Rounding: each runtime adds up the products of a convolution in its own order; 9e-6 was measured.
        np.testing.assert_allclose(run(directory, z, labels), expected, atol=2e-5)

    def test_unknown_and_missing(self, monkeypatch, tmp_path):
        with pytest.raises(UserError, match="'tfjs' is not one of saved_model, tflite, onnx"):
            formats.check("out", ["saved_model", "tfjs"])
        monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
        formats.check(str(tmp_path), ["saved_model", "tflite"])
        with pytest.raises(UserError, match="pip install tf2onnx"):
            formats.check("out", ["onnx"])

    def test_directory(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="--export_dir is missing"):
            formats.check("", ["saved_model"])
        for path in (tmp_path, tmp_path / "file"):
            with pytest.raises(UserError, match=f"--export_dir={path} is not empty: choose another"):
                formats.check(str(path), ["saved_model"])


CONFIG = Config(
    dataset="folder:a|b", image_size=32, gf_dim=2, df_dim=2, z_dim=4, num_classes=3, attention_resolution=16, ema_decay=0.9
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two checkpoints, `run`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(CONFIG.to_json())
    generator, discriminator = networks.generator(CONFIG), networks.discriminator(CONFIG)
    state = model_state("generator", generator) | model_state("ema_generator", generator)
    checkpoints = Checkpoints("run")
    for step in (3, 7):
        checkpoints.save(step, state | model_state("discriminator", discriminator))
    checkpoints.wait()
    return load_run("run")


def export_card(run, *arguments):
    """Exports a run to `out` and returns its model card."""
    formats.export_run(run, "out", *arguments)
    with open(os.path.join("out", "README.md"), encoding="utf-8") as file:
        return file.read()


def record(step, value, **protocol):
    whole = {"classifier": "faces", "use_ema": True, "num_samples": 600, **protocol}
    return {"step": step, "time": "2026-01-02T03:04:05Z", "values": {"fid": value}, "protocol": whole, "warnings": ["Mind this."]}


class ModelCardTest:
    def test_says_what_the_generator_is(self, run):
        card = export_card(run)
        count = sum(int(np.prod(weight.shape)) for weight in networks.generator(CONFIG).trainable_variables)
        assert f"| parameters | {count:,} trainable" in card
        assert "| channels by resolution | 8 at 4x4, 8 at 8x8, 8 at 16x16, 8 at 32x32 |" in card
        assert "| step | 7 of 1,000,000 |" in card
        assert "moving average of the generator, decay 0.9 |" in card
        assert "at 16x16, pooled keys and values, gamma 0 |" in card
        assert "| `--dataset` | `folder:a\\|b` | `faces` |" in card
        assert "sagan-train '--dataset=folder:a|b' --image_size=32 " in card
        assert "None are recorded" in card
        assert "tflite" not in card and "onnx" not in card

    def test_shows_the_metrics_of_this_generator_alone(self, run):
        records = [
            record(3, 11.0),
            record(7, 22.0),
            record(7, 33.0, use_ema=False),
            record(7, 44.0, num_samples=9),
            record(7, 55.0),
        ]
        with open("run/metrics.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)
        card = export_card(run)
        assert re.findall(r"\| fid \| (\d+) \|", card) == ["55", "44"]
        assert card.count("Mind this.") == 2
        for entry in ("| num_samples | `600` |", "| num_samples | `9` |", "| measured at | `2026-01-02T03:04:05Z` |"):
            assert entry in card
        assert "compare with each other alone" in card

    def test_names_the_checkpoint_that_was_read(self, run):
        with open("run/checkpoints/7/ckpt.data-00000-of-00001", "wb") as file:
            file.write(b"x")
        assert "| step | 3 of 1,000,000 |" in export_card(run)

    def test_its_python_runs(self, run, monkeypatch):
        for name in ("tf2onnx", "onnxruntime", "ai_edge_litert"):
            pytest.importorskip(name)
        card = export_card(run, formats.FORMATS)
        monkeypatch.chdir("out")
        outputs = []
        for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            names = {}
            exec(block, names)
            outputs.append(names.get("images", names.get("discriminator")))
        assert outputs[0].shape == (4, 32, 32, 3)
        np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-5)
        np.testing.assert_allclose(outputs[2], outputs[0], atol=2e-5)
        assert outputs[3].name == "discriminator"


class CommandTest:
    def test_exports_what_the_flags_say(self, run):
        command = Command("export", "--model_dir=run", "--export_dir=out", "--checkpoint_step=3", "--nouse_ema")
        assert command.wait() == 0, command.stderr
        assert "SavedModel in out: out/README.md says how to use it." in command.stdout
        with open("out/README.md", encoding="utf-8") as file:
            card = file.read()
        assert "| step | 3 of 1,000,000 |" in card
        assert "| weights | the last ones, not an average |" in card
