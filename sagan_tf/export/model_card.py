"""The model card of an export: what the generator is, how to use it, how good it is known to be, and what it is not."""

import math
import os
from collections.abc import Sequence

import keras

from sagan_tf import tables
from sagan_tf.config import Config, reproduce_command, show
from sagan_tf.runs import history

# What `--dataset` names, by what stands before its first colon.
_SOURCES = {
    "twins": "`twins`, images that the package itself generates: two distant tiles that carry the same pattern",
    "folder": "the images of the folder `{0}` on the machine that trained",
    "tfrecord": "the records `{0}` on the machine that trained",
    "tfds": "`{0}` of TensorFlow Datasets, split `{1}`",
}

_TFLITE = """
`generator.tflite` computes the images of `serving_default` without TensorFlow (`pip install ai-edge-litert`):

```python
import numpy as np
from ai_edge_litert.interpreter import Interpreter

generate = Interpreter("generator.tflite").get_signature_runner("serving_default")
z = np.random.default_rng(0).standard_normal((4, {z_dim})).astype(np.float32)
images = generate(z=z, labels=np.array([{labels}], np.int32))["images"]
```
"""

_ONNX = """
`generator.onnx` computes the images of `serving_default` without TensorFlow (`pip install onnxruntime`):

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("generator.onnx")
z = np.random.default_rng(0).standard_normal((4, {z_dim})).astype(np.float32)
(images,) = session.run(["images"], {{"z": z, "labels": np.array([{labels}], np.int32)}})
```
"""

_CARD = """\
# SAGAN generator: {dataset}, {size} px

A generator of `sagan_tf` (Self-Attention GAN, [arXiv 1805.08318](https://arxiv.org/abs/1805.08318)).

{facts}

## Use

In this directory, with nothing but TensorFlow installed:

```python
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(".")
z = np.random.default_rng(0).standard_normal((4, {z_dim})).astype(np.float32)
labels = np.array([{labels}], np.int32)
images = model.signatures["serving_default"](z=tf.constant(z), labels=tf.constant(labels))["images"]
ready = model.signatures["sample"](labels=tf.constant(labels), seed=tf.constant(0))["images"]
```

| signature | takes | gives |
|---|---|---|
{signatures}

{label_note} z is drawn from the standard normal distribution; the batch may be of any size. From the shell, with arrays in
files or as numbers:

```bash
saved_model_cli run --dir . --tag_set serve --signature_def serving_default --inputs 'z=z.npy;labels=labels.npy' --outdir out
saved_model_cli run --dir . --tag_set serve --signature_def sample --input_exprs 'labels=[{labels}];seed=0' --outdir out
```
{other_formats}
Both networks as Keras models, where `sagan_tf` is installed:

```python
import keras
import sagan_tf.networks

generator = keras.saving.load_model("keras/generator.keras")
discriminator = keras.saving.load_model("keras/discriminator.keras")
```

## Training

Trained on {source}.
The settings that differ from their defaults:

| setting | value | default |
|---|---|---|
{settings}

```bash
{command}
```

## Metrics

{metrics}

## Limits

- The generator draws what its training images show, with their gaps and their biases, and nothing else. Its images may
  resemble single training images, or repeat them: where the run and its training images are,
  `sagan-sample --model_dir=RUN --output=neighbours.png --neighbours=5` shows the nearest ones. Whose those images are,
  and what may be done with them, this file does not know.
- It is one run with one seed: how much another one would differ is not known from it.
- {metric_limit}
"""


def _cell(value) -> str:
    """Returns a value as code in a cell of a table, in which a bar would begin the next."""
    return f"`{show(value)}`".replace("|", "\\|")


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _attention(config: Config, generator: keras.Model) -> str:
    if not config.attention_resolution:
        return "none"
    size = f"{config.attention_resolution}x{config.attention_resolution}"
    if config.attention_block == "residual":
        return f"none; the control's residual block at {size}"
    pooled = "pooled keys and values" if config.attention_pooling else "keys and values not pooled"
    return f"at {size}, {pooled}, gamma {float(generator.get_layer('attention').gamma):.4g}"


def _metrics(records: Sequence[dict]) -> str:
    """Returns the newest record of each protocol: values, warnings, and the protocol."""
    parts = []
    for protocol, group in history.by_protocol(records):
        record = group[-1]
        parts.append(
            "| metric | value |\n|---|---|\n" + _table([(name, f"{value:.5g}") for name, value in record["values"].items()])
        )
        parts += [f"**Note:** {warning}" for warning in record["warnings"]]
        measured = [("measured at", _cell(record["time"]))] if "time" in record else []
        rows = measured + [(name, _cell(value)) for name, value in protocol.items()]
        parts.append("How they were measured:\n\n| protocol | value |\n|---|---|\n" + _table(rows))
    return "\n\n".join(parts) or "None are recorded for this generator: `sagan-evaluate` measures it."


def text(
    config: Config,
    generator: keras.Model,
    step: int,
    use_ema: bool,
    formats: Sequence[str] = ("saved_model",),
    records: Sequence[dict] = (),
) -> str:
    """Returns the model card of a generator, in Markdown.

    Args:
      config: of the run.
      generator: its trained generator.
      step: of the checkpoint.
      use_ema: whether it is the averaged generator.
      formats: what it is exported as (see `export.FORMATS`).
      records: those of `metrics.jsonl`; the ones of this step and this kind of generator are shown.
    """
    measured = [
        record for record in records if record["step"] == step and bool(record["protocol"].get("use_ema", use_ema)) == use_ema
    ]
    kind, _, place = config.dataset.partition(":")
    size, classes = config.image_size, config.num_classes
    widths = ", ".join(f"{multiple * config.gf_dim} at {pixels}x{pixels}" for pixels, multiple in tables.GENERATOR[size])
    trainable = sum(math.prod(weight.shape) for weight in generator.trainable_variables)
    averaged = f"moving average of the generator, decay {config.ema_decay:g}" if use_ema else "the last ones, not an average"
    folded = "; the spectral norms are divided into the kernels of the SavedModel" if config.generator_spectral_norm else ""
    facts = (
        ("training images", f"{_cell(config.dataset)}, {size}x{size} px"),
        ("classes", f"{classes}" if classes else "none: unconditional"),
        ("z", f"{config.z_dim} dimensions"),
        ("channels by resolution", widths),
        ("self-attention", _attention(config, generator)),
        ("parameters", f"{trainable:,} trainable{folded}"),
        ("step", f"{step:,} of {config.train_steps:,}"),
        ("weights", averaged),
    )
    images = f"`images` float32 `[B, {size}, {size}, 3]` in [-1, 1]"
    z_and_labels = f"`z` float32 `[B, {config.z_dim}]`, `labels` int32 `[B]`"
    settings = [(f"`--{name}`", _cell(value), _cell(getattr(Config, name))) for name, value in config.non_default().items()]
    signatures = [
        ("`serving_default`", z_and_labels, images),
        ("`sample`", "`labels` int32 `[B]`, `seed` int32 `[]`", f"`images` uint8 `[B, {size}, {size}, 3]`"),
    ]
    if config.attention_resolution and config.attention_block == "attention":
        signatures.append(("`attention`", z_and_labels, f"{images}, `attention` float32 `[B, H, W, h, w]`"))
    labels = ", ".join(str(number % max(classes, 1)) for number in range(4))
    classifiers = {record["protocol"].get("classifier") for record in measured}
    others = "".join(part for name, part in (("tflite", _TFLITE), ("onnx", _ONNX)) if name in formats)
    return _CARD.format(
        dataset=config.dataset,
        size=size,
        facts="| | |\n|---|---|\n" + _table(facts),
        z_dim=config.z_dim,
        labels=labels,
        signatures=_table(signatures),
        label_note=(f"Labels are 0 to {classes - 1}." if classes else "Labels are taken for the sake of the batch, and not read."),
        other_formats=others.format(z_dim=config.z_dim, labels=labels),
        source=_SOURCES[kind].format(place, config.data_split) if kind in _SOURCES else f"`{config.dataset}`",
        settings=_table(settings),
        command=reproduce_command(config, f"{os.path.basename(os.path.abspath(config.model_dir))}-again"),
        metrics=_metrics(measured),
        metric_limit=(
            "Metrics of the embedded classifier compare with each other alone, not with published Inception Scores and FIDs."
            if "embedded" in classifiers
            else "Metrics compare with those of the same protocol alone."
        ),
    )
