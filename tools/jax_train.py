"""Trains small runs under JAX, many at a time: for a machine that has an accelerator and JAX, and no TensorFlow.

python tools/jax_train.py --jobs=jobs.json --images=images.npz --output=trained/

The networks, the losses and the settings are the package's; so is the step: a generator update, then a discriminator
update on real and generated images together, both by Adam. What draws noise, labels and the order of the images is
JAX's random numbers, so a run equals one of `sagan-train` in distribution, not in bits. `tests/jax_train_test.py` holds
the step itself to the package's own, number by number. `tools/run_of_arrays.py` makes a run of what comes out.

`jobs.json` is a list of `{"name": ..., "settings": {a field of Config: value, ...}}`. Runs that differ in nothing but the
`TRACED` settings are trained side by side, as one program over stacked weights. The images are arrays: `images` uint8
`[N, H, W, 3]`, `labels` int `[N]`, and for images with two parts that agree, where those are: `parts` int `[2, P]`, places
in a flat image `[H * W]`. Each run leaves `NAME.npz`: the state by the names of a checkpoint (`state/...`), and
what was logged (`log/...`: a row every `save_samples_steps`). Give an
accelerator to one process alone. On one H100 (2026-11-28), seven processes at once spent five minutes compiling and then took
8 ms for a step of 3 runs; nine that left out the search for fast kernels (`XLA_FLAGS=--xla_gpu_autotune_level=0
--xla_gpu_enable_triton_gemm=false`) compiled in half a minute and then took 0.2 s for a step of 10.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from absl import app, flags

from sagan_tf import losses, networks
from sagan_tf.config import Config
from sagan_tf.errors import UserError

# Beginnings of the names in a checkpoint, by what `--keep` says.
KEPT = {"all": ("",), "networks": ("generator/", "discriminator/", "ema_generator/", "step", "rollbacks")}

FLAGS = flags.FLAGS
flags.DEFINE_string("jobs", None, "File with the runs to make.", required=True)
flags.DEFINE_string("images", None, "File with the real images and their labels.", required=True)
flags.DEFINE_string("output", None, "Directory to write the runs to.", required=True)
flags.DEFINE_float("seconds", float("inf"), "Seconds after which a group of runs ends where it is, compiling included.")
flags.DEFINE_enum("keep", "all", list(KEPT), "What to keep of a run's state: all, or the networks alone.")

# Settings that are numbers in the compiled program, so that runs with different ones can share it.
TRACED = ("seed", "generator_learning_rate", "discriminator_learning_rate", "beta1", "beta2", "ema_decay")
# What the step does not know; a run that asks for one is refused.
UNKNOWN = ("g_step", "d_step", "accumulation_steps", "sync_batch_norm", "augment")
NETWORKS = ("generator", "discriminator")
LOGGED = ("generator_loss", "discriminator_loss_real", "discriminator_loss_fake")
COLUMNS = ("step", "diversity", "agreement", *LOGGED)
WRITE_SECONDS = 60  # Between two writings of a run that is on its way.
SAMPLES_PER_CLASS = 32  # Behind each row's diversity.

State = dict[str, Any]


def initial_values(model: keras.Model, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns new values for a model's variables, distributed as Keras' initialisers do."""
    values = []
    for variable in model.variables:
        value = np.asarray(variable.value)
        if variable.path.endswith("/u"):
            draws = rng.standard_normal((64, *value.shape))
            value = np.take_along_axis(draws, np.argmax(np.abs(draws) < 2, axis=0)[None], 0)[0]
        elif variable.path.endswith(("/kernel", "/embeddings")):
            area = np.prod(value.shape[:-2])
            limit = np.sqrt(6.0 / (area * (value.shape[-2] + value.shape[-1])))
            value = rng.uniform(-limit, limit, value.shape)
        values.append(value.astype(np.float32))
    return values


class Program:
    """The training of runs that differ in `TRACED` settings alone.

    Args:
      config: of one of them.
      classes: of the images.
    """

    def __init__(self, config: Config, classes: int):
        for name in UNKNOWN:
            if getattr(config, name, None) != getattr(Config(), name, None):
                raise UserError(f"--{name}={getattr(config, name)} is not known to this tool: train with sagan-train.")
        self.config = config.replace(num_classes=classes if config.num_classes < 0 else config.num_classes)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # Where many small programs compile soonest.
            self.models = {"generator": networks.generator(self.config), "discriminator": networks.discriminator(self.config)}

    def initial(self, config: Config) -> State:
        """Returns the state of a run before its first step."""
        rng = np.random.default_rng(config.seed)
        weights = {name: initial_values(model, rng) for name, model in self.models.items()}
        trained = {name: self._trained(name, values) for name, values in weights.items()}
        zeros = {name: [np.zeros_like(value) for value in values] for name, values in trained.items()}
        settings = {name: np.asarray(getattr(config, name), np.uint32 if name == "seed" else np.float32) for name in TRACED}
        return {
            "step": np.int32(0),
            "weights": weights,
            "average": [np.array(value) for value in weights["generator"]],
            "first": zeros,
            "second": zeros,
            "settings": settings,
        }

    def _trained(self, name: str, values: Sequence[Any]) -> list[Any]:
        return [value for value, variable in zip(values, self.models[name].variables, strict=True) if variable.trainable]

    def call(self, name: str, values: Sequence[Any], inputs: Sequence[Any], training: bool) -> tuple[Any, list[Any]]:
        """Returns what a network makes of its inputs, and its variables after."""
        variables = self.models[name].variables
        trained = self._trained(name, values)
        others = [value for value, variable in zip(values, variables, strict=True) if not variable.trainable]
        outputs, moved = self.models[name].stateless_call(trained, others, inputs, training=training)
        rest = iter(moved)
        return outputs, [v if variable.trainable else next(rest) for v, variable in zip(values, variables, strict=True)]

    def _replaced(self, name: str, values: Sequence[Any], trained: Sequence[Any]) -> list[Any]:
        rest = iter(trained)
        return [next(rest) if v.trainable else value for value, v in zip(values, self.models[name].variables, strict=True)]

    def update(self, state: State, name: str, loss: Any) -> tuple[State, Any]:
        """Applies Adam to a network, in TF1's form: epsilon is added outside the bias correction.

        Args:
          state: of the run.
          name: of the network.
          loss: a function of the network's values that returns the loss, and `(weights of both networks, logged values)`.
        """
        values, settings = state["weights"][name], state["settings"]
        rate = settings[f"{name}_learning_rate"]
        trained = self._trained(name, values)

        def of_trained(part):
            return loss(self._replaced(name, values, part))

        gradients, (weights, logged) = jax.grad(of_trained, has_aux=True)(trained)
        count = (state["step"] + 1).astype(jnp.float32)
        beta1, beta2 = settings["beta1"], settings["beta2"]
        rate = rate * jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        first = [beta1 * m + (1 - beta1) * g for m, g in zip(state["first"][name], gradients, strict=True)]
        second = [beta2 * v + (1 - beta2) * g * g for v, g in zip(state["second"][name], gradients, strict=True)]
        epsilon = self.config.adam_epsilon
        moved = [w - rate * m / (jnp.sqrt(v) + epsilon) for w, m, v in zip(trained, first, second, strict=True)]
        weights = {**weights, name: self._replaced(name, weights[name], moved)}
        slots = {"first": {**state["first"], name: first}, "second": {**state["second"], name: second}}
        return {**state, **slots, "weights": weights}, logged

    def step(self, state: State, batch: tuple[Any, Any], draws: Mapping[str, tuple[Any, Any]]) -> tuple[State, Any]:
        """Makes one step.

        Args:
          state: of the run.
          batch: real images `[B, H, W, 3]` in [-1, 1], and labels `[B]`.
          draws: z `[B, z_dim]` and labels `[B]` for the update of each network.
        """

        def generator_loss(values):
            images, moved = self.call("generator", values, draws["generator"], True)
            logits, _ = self.call("discriminator", state["weights"]["discriminator"], [images, draws["generator"][1]], False)
            loss = losses.generator_loss(logits)
            return loss, ({**state["weights"], "generator": moved}, (loss,))

        def discriminator_loss(values):
            fakes, moved = self.call("generator", state["weights"]["generator"], draws["discriminator"], True)
            both = [jnp.concatenate(pair) for pair in zip(batch, (fakes, draws["discriminator"][1]), strict=True)]
            logits, moved_discriminator = self.call("discriminator", values, both, True)
            real_logits, fake_logits = jnp.split(logits, 2)
            parts = losses.discriminator_loss(real_logits, fake_logits, self.config.loss_type)
            return sum(parts), ({"generator": moved, "discriminator": moved_discriminator}, parts)

        state, generated = self.update(state, "generator", generator_loss)
        state, told = self.update(state, "discriminator", discriminator_loss)
        decay = state["settings"]["ema_decay"]
        pairs = zip(self.models["generator"].variables, state["average"], state["weights"]["generator"], strict=True)
        average = [new if v.path.endswith("/u") else decay * old + (1 - decay) * new for v, old, new in pairs]
        return {**state, "average": average, "step": state["step"] + 1}, jnp.stack([*generated, *told])

    def steps(self, state: State, images: Any, labels: Any, count: int) -> tuple[State, Any]:
        """Makes some steps; returns the state, and the mean of what is `LOGGED`."""

        def one(state, _):
            batch, classes = self.config.batch_size, max(self.config.num_classes, 1)
            key = jax.random.fold_in(jax.random.key(state["settings"]["seed"]), state["step"])
            keys = jax.random.split(key, 6)
            chosen = jax.random.randint(keys[0], (batch,), 0, len(images))
            real = images[chosen].astype(jnp.float32) / 127.5 - 1.0
            if self.config.horizontal_flip:
                real = jnp.where(jax.random.bernoulli(keys[1], 0.5, (batch, 1, 1, 1)), real[:, :, ::-1], real)
            draws = {
                name: (
                    jax.random.normal(keys[2 + 2 * number], (batch, self.config.z_dim)),
                    jax.random.randint(keys[3 + 2 * number], (batch,), 0, classes),
                )
                for number, name in enumerate(NETWORKS)
            }
            return self.step(state, (real, labels[chosen]), draws)

        state, logged = jax.lax.scan(one, state, length=count)
        return state, logged.mean(0)

    def samples(self, state: State, z: Any, labels: Any) -> Any:
        """Returns images uint8 of the generator that is sampled: the average if there is one, else the average is the last."""
        images, _ = self.call("generator", state["average"], [z, labels], False)
        return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def convolve_by_products(inputs: Any, kernel: Any, strides: int = 1, padding: str = "same", **_: Any) -> Any:
    """`keras.ops.conv` of odd kernels, as one matrix product: stacked weights then make a batched product.

    A convolution over stacked kernels is a grouped one, which accelerators are slow at.
    """
    if strides != 1 or padding != "same":
        raise NotImplementedError("stride 1 and padding 'same' alone")
    size = kernel.shape[0]
    if size > 1:
        margin = size // 2
        height, width = inputs.shape[1:3]
        padded = jnp.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        places = [(row, column) for row in range(size) for column in range(size)]
        inputs = jnp.concatenate([padded[:, r : r + height, c : c + width] for r, c in places], axis=-1)
    return jnp.matmul(inputs, kernel.reshape(-1, kernel.shape[-1]))


def diversity(samples: np.ndarray, labels: np.ndarray) -> float:
    """Returns the deviation over z within a class, in the images' range of 2 (see `runs/diagnosis.py`)."""
    values = samples.astype(np.float32) / 127.5
    within = [values[labels == label].var(axis=0, ddof=1).mean() for label in np.unique(labels)]
    return float(np.sqrt(np.mean(within)))


def agreement(samples: np.ndarray, labels: np.ndarray, parts: np.ndarray | None) -> float:
    """Returns how alike two parts of an image are, as `data/faces.py` does, from one other image of the class for each."""
    if parts is None:
        return float("nan")
    flat = samples.astype(np.float32).reshape(len(samples), -1, 3)
    order = np.argsort(labels, kind="stable")
    first, second = flat[order][:, parts[0]], flat[order][:, parts[1]]
    of_class = labels[order]
    other = np.concatenate([np.roll(np.flatnonzero(of_class == label), 1) for label in np.unique(labels)])
    return float(1 - np.abs(first - second).mean() / max(np.abs(first - second[other]).mean(), 1e-6))


def state_arrays(program: Program, state: State) -> dict[str, np.ndarray]:
    """Returns a run's state by the names of a checkpoint."""
    arrays: dict[str, Any] = {"step": np.int64(state["step"]), "rollbacks": np.int64(0)}
    for name, model in program.models.items():
        arrays |= {f"{name}/{v.path}": value for v, value in zip(model.variables, state["weights"][name], strict=True)}
        rate = state["settings"][f"{name}_learning_rate"]
        arrays |= {f"{name}_adam/iteration": np.int64(state["step"]), f"{name}_adam/learning_rate": rate}
        trained = [v for v in model.variables if v.trainable]
        for slot, values in (("momentum", state["first"][name]), ("velocity", state["second"][name])):
            for v, value in zip(trained, values, strict=True):
                arrays[f"{name}_adam/{v.path.replace('/', '_')}_{slot}"] = value
    if state["settings"]["ema_decay"]:
        model = program.models["generator"]
        arrays |= {f"ema_generator/{v.path}": value for v, value in zip(model.variables, state["average"], strict=True)}
    return {name: np.asarray(value) for name, value in arrays.items()}


def train_group(jobs: Mapping[str, Config], data: Mapping[str, np.ndarray]) -> None:
    """Trains runs side by side, and writes them at their end and every minute before."""
    images, labels, parts = data["images"], data["labels"], data.get("parts")
    configs, side_by_side = list(jobs.values()), len(jobs) > 1
    program = Program(configs[0].replace(fused_resampling="never" if side_by_side else "auto"), int(labels.max()) + 1)
    config = program.config
    stack = (lambda *leaves: np.stack(leaves)) if side_by_side else np.asarray
    state = jax.tree.map(stack, *(program.initial(each) for each in configs))
    classes = max(config.num_classes, 1)
    sample_labels = np.arange(SAMPLES_PER_CLASS * classes, dtype=np.int32) % classes
    z = np.random.default_rng(0).standard_normal((len(sample_labels), config.z_dim), np.float32)
    real = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    period = min(config.save_samples_steps, config.train_steps)

    def steps(state, images, labels):
        return program.steps(state, images, labels, period)

    def samples(state):
        return program.samples(state, z, sample_labels)

    if side_by_side:
        steps, samples = jax.vmap(steps, in_axes=(0, None, None)), jax.vmap(samples)
    began = time.time()
    with mock.patch.object(keras.ops, "conv", convolve_by_products if side_by_side else keras.ops.conv):
        steps = jax.jit(steps, donate_argnums=0).lower(state, *real).compile()
        samples = jax.jit(samples).lower(state).compile()
    few = np.concatenate([np.flatnonzero(labels == label)[:256] for label in np.unique(labels)])
    of_real = diversity(images[few], labels[few])
    compiled = written = time.time()
    rows: list[list[list[float]]] = []
    for _ in range(config.train_steps // period):
        state, logged = steps(state, *real)
        drawn, logged = np.asarray(samples(state)), np.asarray(logged)
        drawn, logged = (drawn, logged) if side_by_side else (drawn[None], logged[None])
        step = (len(rows) + 1) * period
        measures = [[step, diversity(d, sample_labels) / of_real, agreement(d, sample_labels, parts)] for d in drawn]
        rows.append([[*measured, *row] for measured, row in zip(measures, logged, strict=True)])
        late = time.time() - began > FLAGS.seconds
        if late or step + period > config.train_steps or time.time() - written > WRITE_SECONDS:
            written = time.time()
            facts = {"seconds": written - compiled, "seconds_to_compile": compiled - began, "side_by_side": len(jobs)}
            write(jobs, program, jax.device_get(state), np.array(rows), facts)
            print(f"{', '.join(jobs)}: {step} steps, {facts}", flush=True)
        if late:
            break


def write(jobs: Mapping[str, Config], program: Program, state: State, rows: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Writes the file of each run: its settings, state and log (`rows` `[times, runs, columns]`)."""
    for number, (name, config) in enumerate(jobs.items()):
        of_run = jax.tree.map(lambda leaf, number=number: leaf[number], state) if len(jobs) > 1 else state
        arrays = state_arrays(program, of_run)
        arrays = {path: value for path, value in arrays.items() if path.startswith(KEPT[FLAGS.keep])}
        contents: dict[str, Any] = {f"state/{path}": value for path, value in arrays.items()}
        contents |= dict(zip([f"log/{column}" for column in COLUMNS], rows[:, number].T, strict=True))
        settings = config.replace(num_classes=program.config.num_classes).to_json()
        described = json.dumps({**facts, "config": settings, "device": jax.devices()[0].device_kind})
        path = os.path.join(FLAGS.output, f"{name}.npz")
        np.savez(f"{path}.new", facts=described, **contents)  # Adds .npz.
        os.replace(f"{path}.new.npz", path)


def main(_: Sequence[str]) -> None:
    """Trains what the jobs ask for, group by group."""
    with open(FLAGS.jobs, encoding="utf-8") as file:
        jobs = {job["name"]: Config(**job["settings"]) for job in json.load(file)}
    with np.load(FLAGS.images) as file:
        data = dict(file)
    os.makedirs(FLAGS.output, exist_ok=True)
    groups: dict[Config, dict[str, Config]] = {}
    for name, config in jobs.items():
        same = config.replace(**{setting: getattr(Config(), setting) for setting in TRACED})
        groups.setdefault(same, {})[name] = config
    for group in groups.values():
        train_group(group, data)


if __name__ == "__main__":
    app.run(main)
