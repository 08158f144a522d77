"""Measures the speed and memory of training, input, sampling, metrics and checkpoints.

python tools/benchmark.py --json=benchmark.json
python tools/benchmark.py --parts=step --batch_size=8 --rounds=3
python tools/benchmark.py --backend=jax --parts=step --batch_size=64

Variants of the training step run in turn in one process, round after round, so that whatever else the
machine does meets all of them; medians over the rounds are printed, and medians of each round's ratio to
`naive`. `naive` is the reference's formulation; the others add one lever each to the one before:

  naive      plain resampling; real and generated images pass through the discriminator apart
  one_pass   together: each spectral norm of the discriminator is computed once per update
  float32    resampling and convolution as one (sagan_tf/resampling.py): all that float32 has to offer
  bfloat16   convolutions and products in bfloat16
  xla        (on request, in --variants) float32, compiled with XLA

With --backend=jax the same networks take the same two updates under JAX, and TensorFlow is not needed.
"""

import functools
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

# Keras takes its backend when it is imported, which is before flags are parsed.
JAX = any(argument in ("--backend=jax", "-backend=jax") for argument in sys.argv)
os.environ["KERAS_BACKEND"] = "jax" if JAX else "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from sagan_tf import architecture, files, losses, networks, resampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError

Key = TypeVar("Key")
FLAGS = flags.FLAGS
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax"], "Keras backend of the training step.")
flags.DEFINE_list("parts", ["step", "resampling", "input", "sample", "metrics", "checkpoint"], "What to measure.")
flags.DEFINE_list("variants", ["naive", "one_pass", "float32", "bfloat16"], "Variants of the training step.")
flags.DEFINE_integer("rounds", 5, "Times that each variant runs.", lower_bound=1)
flags.DEFINE_integer("steps", 1, "Steps at a time.", lower_bound=1)
flags.DEFINE_integer("image_size", 128, "Height and width of the images, in pixels.")
flags.DEFINE_integer("batch_size", 16, "Images per update.")
flags.DEFINE_integer("num_classes", 1000, "Classes.")
flags.DEFINE_integer("gf_dim", 64, "Width of the generator.")
flags.DEFINE_integer("df_dim", 64, "Width of the discriminator.")
flags.DEFINE_integer("attention_resolution", 32, "Where attention stands; 0: none.")
flags.DEFINE_string("json", "", "File to write the results to.")

SETTINGS: dict[str, dict[str, Any]] = {
    "naive": {"fused_resampling": "never"},
    "one_pass": {"fused_resampling": "never"},
    "float32": {},
    "bfloat16": {"mixed_precision": "bfloat16"},
    "xla": {"jit_compile": True},
}


def variant_config(name: str) -> Config:
    """Returns the configuration of a variant at the sizes that the flags give."""
    names = ("image_size", "batch_size", "num_classes", "gf_dim", "df_dim", "attention_resolution")
    sizes: dict[str, Any] = {name: FLAGS[name].value for name in names}
    return Config(**sizes, **SETTINGS[name])


def forward_flop(config: Config) -> tuple[float, float]:
    """Returns the floating-point operations of one image's pass through generator and discriminator.

    Convolutions and products alone, two per multiply-add. A 3x3 convolution beside a 2x resampling costs 9
    products for each of the larger image's positions; as one strided convolution, 16 for each of the smaller's.
    """
    mode = config.fused_resampling

    def attention(size, channels):
        keys = size**2 // (4 if config.attention_pooling else 1)
        convolutions = size**2 * channels * (channels // 8 * 2 + channels // 2 * 2)
        return convolutions + size**2 * keys * (channels // 8 + channels // 2)

    (size, multiple), *rows = architecture.GENERATOR[config.image_size]
    width = multiple * config.gf_dim
    generator = config.z_dim * size**2 * width
    for size, multiple in rows:
        filters, low = multiple * config.gf_dim, (size // 2) ** 2
        fused = resampling.use_fused(mode, size // 2, resampling.MIN_FUSED_UP)
        generator += low * width * filters * ((16 + 1) if fused else 4 * (9 + 1)) + 4 * low * 9 * filters**2
        if size == config.attention_resolution:
            generator += attention(size, filters)
        width = filters
    generator += config.image_size**2 * 9 * width * 3

    discriminator, width, before = 0, 3, config.image_size
    for size, multiple in architecture.DISCRIMINATOR[config.image_size]:
        filters, low, pooled = multiple * config.df_dim, size**2, size < before
        fused = pooled and resampling.use_fused(mode, size, resampling.MIN_FUSED_DOWN)
        discriminator += before**2 * 9 * width * filters
        discriminator += low * 16 * filters**2 if fused else before**2 * 9 * filters**2
        if pooled or width != filters:
            discriminator += (low if fused else before**2) * width * filters
        if size == config.attention_resolution and pooled:
            discriminator += attention(size, filters)
        width, before = filters, size
    return 2.0 * generator, 2.0 * discriminator


def step_flop(config: Config) -> float:
    """Returns the floating-point operations of a training step, per image of the batch.

    A backward pass costs a forward pass for the gradient of the inputs and one for that of the weights. The generator's
    update: both networks forward, the discriminator's inputs, the generator's inputs and weights. The discriminator's: one
    generator pass, and two images forward and backward. In all, four passes of the generator and eight of the discriminator.
    """
    generator, discriminator = forward_flop(config)
    return 4 * generator + 8 * discriminator


def peak_memory(variant: str) -> float:
    """Returns the largest resident memory in MB of a process that makes two steps of a variant and nothing else."""
    command = [sys.executable, *sys.argv, f"--variants={variant}", "--parts=peak", "--json="]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak() -> dict[str, dict[str, float]]:
    """Measures what `peak_memory` asks for, in the process that it starts."""
    (name,) = FLAGS.variants
    call, _ = tensorflow_step(name)
    call()
    call()
    with open("/proc/self/status", encoding="ascii") as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return {name: {"peak_memory_mb": kilobytes / 1024}}


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(calls: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """Returns the seconds of each call in each round, after one call of each that is not counted."""
    for call in calls.values():
        call()
    times: dict[Key, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


# The training step under TensorFlow.


def tensorflow_step(name: str) -> tuple[Callable[[], object], int]:
    """Returns a function that makes `--steps` training steps, and the bytes of the variables they change."""
    import tensorflow as tf

    from sagan_tf.training import Trainer

    class TwoPasses(Trainer):
        """Real and generated images pass through the discriminator apart, as in the reference."""

        def discriminate(self, images, labels, fakes, fake_labels):
            logits_fake = self.discriminator([fakes, fake_labels], training=False)
            return self.discriminator([images, labels], training=True), logits_fake

    config = variant_config(name)
    trainer = (TwoPasses if name == "naive" else Trainer)(config)
    images, labels, _ = random_batch(config)
    batches = iter(tf.data.Dataset.from_tensors({"images": images, "labels": labels}).cache().repeat())
    return lambda: trainer.train(batches, tf.constant(FLAGS.steps))[0].numpy(), state_bytes(trainer)


def state_bytes(trainer) -> int:
    """Returns the bytes of all variables that a run needs to resume."""
    return sum(
        int(np.prod(v.shape)) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize for v in trainer.state().values()
    )


def tensorflow_product_rate(dtype: str, size: int = 4096) -> float:
    """Returns the FLOP/s of a large matrix product."""
    import tensorflow as tf

    a = tf.cast(tf.random.stateless_normal([size, size], [0, 0]), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.linalg.matmul(a, a)))
    return 2 * size**3 / np.median(interleaved({"": lambda: product().numpy()}, 5)[""])


# The training step under JAX.


def jax_step(name: str) -> tuple[Callable[[], object], int]:
    """Returns what `tensorflow_step` does, under JAX."""
    import jax
    import jax.numpy as jnp

    config = variant_config(name)
    generator, discriminator = networks.generator(config), networks.discriminator(config)
    models = {"generator": generator, "discriminator": discriminator}
    rates = {"generator": config.generator_learning_rate, "discriminator": config.discriminator_learning_rate}
    optimizers = {}
    for network, model in models.items():
        optimizers[network] = keras.optimizers.Adam(rates[network], config.beta1, config.beta2, config.adam_epsilon)
        optimizers[network].build(model.trainable_variables)

    def run(network, weights, others, inputs, training):
        return models[network].stateless_call(weights[network], others[network], inputs, training=training)

    def generator_loss(part, weights, others, z, labels):
        images, moved = run("generator", {"generator": part}, others, [z, labels], True)
        logits, _ = run("discriminator", weights, others, [images, labels], False)
        return losses.generator_loss(logits), moved

    def discriminator_loss(part, weights, others, images, labels, z):
        fakes, generator_moved = run("generator", weights, others, [z, labels], True)
        weights = {"discriminator": part}
        if name == "naive":
            logits_fake, _ = run("discriminator", weights, others, [fakes, labels], False)
            logits_real, moved = run("discriminator", weights, others, [images, labels], True)
        else:
            both = [jnp.concatenate([images, fakes]), jnp.concatenate([labels, labels])]
            logits, moved = run("discriminator", weights, others, both, True)
            logits_real, logits_fake = jnp.split(logits, 2)
        return sum(losses.discriminator_loss(logits_real, logits_fake, config.loss_type)), (generator_moved, moved)

    def update(network, loss, weights, others, slots, *inputs):
        gradients, moved = jax.grad(loss, has_aux=True)(weights[network], weights, others, *inputs)
        new, slot = optimizers[network].stateless_apply(slots[network], gradients, weights[network])
        return {**weights, network: new}, {**slots, network: slot}, moved

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, key, images, labels):
        weights, others, slots = state
        draws = jax.random.normal(key, (2, config.batch_size, config.z_dim))
        weights, slots, moved = update("generator", generator_loss, weights, others, slots, draws[0], labels)
        others = {**others, "generator": moved}
        inputs = (images, labels, draws[1])
        weights, slots, moved = update("discriminator", discriminator_loss, weights, others, slots, *inputs)
        return weights, dict(zip(("generator", "discriminator"), moved, strict=True)), slots

    def values(variables):
        return [variable.value for variable in variables]

    state = (
        {network: values(model.trainable_variables) for network, model in models.items()},
        {network: values(model.non_trainable_variables) for network, model in models.items()},
        {network: values(optimizer.variables) for network, optimizer in optimizers.items()},
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    batch = [jnp.asarray(each) for each in random_batch(config)[:2]]
    held: dict[str, Any] = {"state": state, "key": jax.random.key(0)}

    def steps():
        for _ in range(FLAGS.steps):
            held["key"], key = jax.random.split(held["key"])
            held["state"] = step(held["state"], key, *batch)
        jax.block_until_ready(held["state"])

    return steps, size


def jax_product_rate(dtype: str, size: int = 4096) -> float:
    """Returns the FLOP/s of a large matrix product."""
    import jax
    import jax.numpy as jnp

    size = size if jax.default_backend() == "cpu" else 4 * size
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a))
    return 2 * size**3 / np.median(interleaved({"": lambda: jax.block_until_ready(product(a))}, 5)[""])


def random_batch(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns noise as images in [-1, 1], labels, and z."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (config.batch_size, config.image_size, config.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, config.num_classes or 1, config.batch_size).astype(np.int32)
    return images, labels, rng.standard_normal((config.batch_size, config.z_dim)).astype(np.float32)


def measure_step() -> dict[str, dict[str, float]]:
    """Measures the variants of the training step."""
    make, rate = (jax_step, jax_product_rate) if JAX else (tensorflow_step, tensorflow_product_rate)
    # JAX lets products in float32 run in lower precision on an accelerator unless told; convolutions likewise.
    rates = {dtype: rate(dtype) for dtype in ("float32", "bfloat16")}
    results = {f"product_{dtype}": {"gflop_per_second": value / 1e9} for dtype, value in rates.items()}
    made = {name: make(name) for name in FLAGS.variants}
    times = interleaved({name: call for name, (call, _) in made.items()}, FLAGS.rounds)
    images = FLAGS.batch_size * FLAGS.steps
    for name, (_, state) in made.items():
        flop, took = step_flop(variant_config(name)), float(np.median(times[name]))
        results[name] = {
            "images_per_second": images / took,
            "seconds_per_step": took / FLAGS.steps,
            "gflop_per_image": flop / 1e9,
            "share_of_product_rate": flop * images / took / rates["bfloat16" if name == "bfloat16" else "float32"],
            "state_mb": state / 2**20,
        }
        if not JAX:
            results[name]["peak_memory_mb"] = peak_memory(name)
        if "naive" in times:
            ratios = np.array(times["naive"]) / np.array(times[name])
            results[name]["ratio_to_naive"] = float(np.median(ratios))
    return results


def measure_resampling() -> dict[str, dict[str, float]]:
    """Measures each block's resampling with its 3x3 convolution, plain and as one, forward and backward."""
    import tensorflow as tf

    config, results = variant_config("naive"), dict[str, dict[str, float]]()
    shapes = []  # (direction, low resolution, channels in, channels out)
    (_, multiple), *rows = architecture.GENERATOR[config.image_size]
    width = multiple * config.gf_dim
    for size, multiple in rows:
        shapes.append(("up", size // 2, width, multiple * config.gf_dim))
        width = multiple * config.gf_dim
    before = config.image_size
    for size, multiple in architecture.DISCRIMINATOR[config.image_size]:
        if size < before:
            shapes.append(("down", size, multiple * config.df_dim, multiple * config.df_dim))
        before = size

    def call(convolve, images, kernel, mode):
        @tf.function
        def run():
            with tf.GradientTape() as tape:
                tape.watch([images, kernel])
                outputs = convolve(images, kernel, mode)
            return [tf.reduce_sum(gradient) for gradient in tape.gradient(outputs, [images, kernel])]

        return lambda: [value.numpy() for value in run()]

    for direction, low, width, filters in shapes:
        convolve = resampling.upsample_conv if direction == "up" else resampling.conv_average_pool
        size = low if direction == "up" else 2 * low
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for dtype in ("float32", "bfloat16"):
            images = tf.cast(tf.random.stateless_normal([config.batch_size, size, size, width], [0, 0]), dtype)
            kernel = tf.cast(tf.random.stateless_normal([3, 3, width, filters], [1, 0]), dtype)
            calls |= {(dtype, mode): call(convolve, images, kernel, mode) for mode in ("never", "always")}
        times = {name: np.median(values) for name, values in interleaved(calls, FLAGS.rounds).items()}
        found = results[f"{direction} {low}x{low}, {width} to {filters}"] = {}
        for dtype in ("float32", "bfloat16"):
            found[f"{dtype}_plain_seconds"] = times[dtype, "never"]
            found[f"{dtype}_fused_speedup"] = times[dtype, "never"] / times[dtype, "always"]
    return results


# Everything around the step, under TensorFlow.


def measure_input() -> dict[str, dict[str, float]]:
    """Measures reading records, and the training step on real records against one cached batch."""
    import tensorflow as tf
    from PIL import Image

    from sagan_tf import data
    from sagan_tf.training import Trainer

    rng, size, results = np.random.default_rng(0), FLAGS.image_size, {}

    def record(features: dict) -> bytes:
        example = tf.train.Example()
        for name, value in features.items():
            feature = example.features.feature[name]
            (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
        return example.SerializeToString()

    def jpeg() -> bytes:
        # Smooth, as photographs are; noise would be slower to decode than any of them.
        image = Image.fromarray(rng.integers(0, 256, (25, 20, 3), np.uint8)).resize((500, 400), Image.Resampling.BICUBIC)
        image.save(file := io.BytesIO(), format="JPEG", quality=90)
        return file.getvalue()

    def write(directory: str, records: Iterable[bytes], shards: int = 4) -> str:
        records = list(records)
        for shard in range(shards):
            with tf.io.TFRecordWriter(os.path.join(directory, f"{shard}.tfrecord")) as writer:
                for value in records[shard::shards]:
                    writer.write(value)
        return f"tfrecord:{directory}/*.tfrecord"

    def rate(config: Config, images: int) -> float:
        batches = iter(data.train_dataset(data.open_source(config), config))
        next(batches)
        return images / seconds(lambda: [next(batches) for _ in range(images // config.batch_size)])

    with tempfile.TemporaryDirectory() as raw, tempfile.TemporaryDirectory() as encoded:
        base = variant_config("float32")
        raw = write(raw, (record({"image_raw": rng.bytes(size * size * 3), "label": n % 10}) for n in range(2048)))
        encoded = write(encoded, (record({"image/encoded": jpeg(), "image/class/label": n % 10}) for n in range(512)))
        for name, dataset, images in (("input_raw", raw, 40_960), ("input_encoded", encoded, 4_096)):
            config = base.replace(dataset=dataset, batch_size=64)
            results[name] = {"images_per_second": float(np.median([rate(config, images) for _ in range(3)]))}

        # Networks of narrow widths: many images per second, so that a slow input would show.
        config = base.replace(dataset=raw, gf_dim=8, df_dim=8)
        trainer = Trainer(config)
        reading = data.train_iterator(data.open_source(config), config, trainer.strategy)
        cached = iter(tf.data.Dataset.from_tensors(next(reading)).cache().repeat())
        calls = {
            name: functools.partial(lambda batches: trainer.train(batches, tf.constant(20))[0].numpy(), batches)
            for name, batches in (("cached", cached), ("reading", reading))
        }
        times = interleaved(calls, FLAGS.rounds)
        results["step_reading_records"] = {
            "images_per_second": 20 * config.batch_size / float(np.median(times["reading"])),
            "ratio_to_cached": float(np.median(np.array(times["cached"]) / np.array(times["reading"]))),
        }
    return results


def measure_sample() -> dict[str, dict[str, float]]:
    """Measures generating images."""
    from sagan_tf import sampling

    config = variant_config("float32")
    generator = networks.generator(config)
    _, labels, z = random_batch(config)
    call = functools.partial(sampling.generate, generator, z, labels)
    return {"sample": {"images_per_second": config.batch_size / np.median(interleaved({"": call}, FLAGS.rounds)[""])}}


def measure_metrics() -> dict[str, dict[str, float]]:
    """Measures FID from 2 x 50,000 features of 2,048 dimensions."""
    from sagan_tf.metrics import scores

    rng = np.random.default_rng(0)
    real, generated = (rng.standard_normal((50_000, 2048), np.float32) for _ in range(2))
    took = seconds(lambda: scores.frechet_distance(real, generated))
    return {"fid_50000": {"seconds": took}}


def measure_checkpoint() -> dict[str, dict[str, float]]:
    """Measures saving everything that a run at these sizes needs to resume."""
    from sagan_tf.runs.checkpoints import Checkpoints
    from sagan_tf.training import Trainer

    trainer = Trainer(variant_config("float32"))
    stalls, writes = [], []
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(directory, keep=1)
        for step in range(FLAGS.rounds):
            stalls.append(seconds(functools.partial(checkpoints.save, step, trainer.state())))
            writes.append(seconds(checkpoints.wait))
    result = {"megabytes": state_bytes(trainer) / 2**20, "stall_seconds": float(np.median(stalls))}
    return {"checkpoint": result | {"largest_stall_seconds": max(stalls), "write_seconds": float(np.median(writes))}}


PARTS = {
    "step": measure_step,
    "peak": measure_peak,
    "resampling": measure_resampling,
    "input": measure_input,
    "sample": measure_sample,
    "metrics": measure_metrics,
    "checkpoint": measure_checkpoint,
}


def main(_) -> None:
    """Measures the parts that were asked for, prints them, and writes them to `--json`."""
    for flag, asked, known in (("parts", FLAGS.parts, PARTS), ("variants", FLAGS.variants, SETTINGS)):
        for name in asked:
            if name not in known:
                sys.exit(f"error: --{flag}: {name!r} is none of {', '.join(known)}.")
    if (FLAGS.backend == "jax") != JAX:
        sys.exit("error: write --backend=jax, in one word and not in a flagfile.")
    if JAX and FLAGS.parts != ["step"]:
        sys.exit("error: --backend=jax measures the step alone: pass --parts=step.")
    results: dict[str, dict[str, float]] = {}
    for part in FLAGS.parts:
        try:
            found = PARTS[part]()
        except UserError as error:
            sys.exit(f"error: {error}")
        for name, values in found.items():
            print(f"{name:22}" + "  ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)
        results |= found
        if FLAGS.json:
            files.write_json(FLAGS.json, results, indent=2)


if __name__ == "__main__":
    app.run(main)
