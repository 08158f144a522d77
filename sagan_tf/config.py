"""The one frozen `Config` that every command shares, and its rules.

Each field is a setting of an experiment: the flags of the commands are generated from the
fields, a flagfile is a list of them, and training saves them as `config.json` in `model_dir`,
from where later commands read them back.
"""

import dataclasses
import json
import numbers
import operator
import os
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from sagan_tf import files
from sagan_tf.architecture import IMAGE_SIZES, attention_places
from sagan_tf.errors import UserError

__all__ = [
    "CONFIG_FILE",
    "GROUPS",
    "REMOVED",
    "Config",
    "expand_flagfile",
    "expand_flagfiles",
    "is_saved",
    "load",
    "reconcile",
    "reproduce_command",
    "show",
]

CONFIG_FILE = "config.json"

# Settings of version 0.1 that are gone; a file that holds them is still read.
REMOVED = ("twins_cells",)

# The groups of `--help`, in the order in which they are printed.
GROUPS = ("Run", "Data", "Networks", "Optimisation", "Speed", "Output", "Evaluation")

# By the type of a setting: what it accepts (NumPy's numbers are numbers), what a sentence calls that, and the largest
# that the formats of the networks hold.
_KINDS: dict[type, tuple[type, str, dict[str, float]]] = {
    bool: (bool, "true or false", {}),
    int: (numbers.Integral, "a whole number", {"at_most": 2**62}),
    float: (numbers.Real, "a number", {"at_most": 1e38}),
    str: (str, "text", {}),
}
_HOLDS: dict[str, Callable[..., bool]] = dict(at_least=operator.ge, above=operator.gt, below=operator.lt, at_most=operator.le)


def _setting(
    default: Any, group: str, text: str, choices: tuple = (), several: bool = False, free: bool = False, **bounds: float
) -> Any:
    """Returns a dataclass field; `free` settings may change when a run is resumed.

    With `several`, any of the choices may be named, with commas between, or none. Of the bounds, `at_least`, `above` and `below`
    say what makes sense; `at_most` is generous, and catches a slip.
    """
    metadata = {"group": group, "help": text, "choices": choices, "several": several, "free": free, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one experiment.

    Defaults are those of the reference at 128x128 px (paper: arXiv 1805.08318). However it is made, in
    Python, from flags or from JSON, it is checked: a setting of another type or out of its bounds raises
    `UserError`, and so do two that cannot go together. A whole number may stand for a float.
    """

    # Run: where, how long, on what.
    model_dir: str = _setting("", "Run", "Directory of the run: configuration, checkpoints, summaries, samples.", free=True)
    train_steps: int = _setting(
        1_000_000, "Run", "Steps to train in all, counted from the start of the run.", free=True, at_least=0
    )
    batch_size: int = _setting(
        256, "Run", "Images per update, over all replicas and accumulation steps.", at_least=1, at_most=2**20
    )
    seed: int = _setting(0, "Run", "Seed of initialisation, noise, labels and data order.", at_least=0, below=2**31)
    distribution: str = _setting(
        "auto",
        "Run",
        "Where to train: auto takes every GPU of this machine, or one device if there is none or one.",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
        free=True,
    )
    tpu: str = _setting("", "Run", "Name or address of the TPU, for --distribution=tpu; empty: the local one.", free=True)
    deterministic: bool = _setting(
        False, "Run", "Bit-identical results for the same seed and hardware, at some cost in speed.", free=True
    )
    on_nan: str = _setting(
        "stop",
        "Run",
        "When a loss, a gradient or a variable is no longer finite: stop, or roll back to the last checkpoint and draw other data.",
        choices=("stop", "rollback"),
        free=True,
    )
    max_rollbacks: int = _setting(3, "Run", "Rollbacks allowed in one run, for --on_nan=rollback.", free=True, at_least=0)
    on_collapse: str = _setting(
        "warn",
        "Run",
        "When the samples of a class are nearly one image in two sample grids in a row: warn and train on, or stop.",
        choices=("warn", "stop"),
        free=True,
    )

    # Data.
    dataset: str = _setting(
        "faces",
        "Data",
        "Training images: faces (generated), folder:PATH, tfrecord:GLOB, or tfds:NAME.",
        free=True,
    )
    data_split: str = _setting("train", "Data", "Split to train on, for tfds:NAME (slices such as train[:50%] work).", free=True)
    data_dir: str = _setting("", "Data", "Directory of the prepared TFDS data; empty: its own default.", free=True)
    image_size: int = _setting(128, "Data", "Height and width of the images, in pixels.", choices=IMAGE_SIZES)
    num_classes: int = _setting(
        -1, "Data", "Classes to condition on; 0: unconditional; -1: as many as the dataset has.", at_least=-1, at_most=2**24
    )
    horizontal_flip: bool = _setting(False, "Data", "Mirror each image with probability 1/2 (the reference does not).")
    skip_corrupt_records: int = _setting(
        0, "Data", "Corrupt examples to skip (and report) before giving up; 0: stop at the first.", free=True, at_least=0
    )

    # Networks.
    z_dim: int = _setting(128, "Networks", "Dimensions of the latent vector z.", at_least=1, at_most=2**16)
    gf_dim: int = _setting(
        64, "Networks", "Channels of the generator's last block; the others are multiples of it.", at_least=1, at_most=2**12
    )
    df_dim: int = _setting(
        64, "Networks", "Channels of the discriminator's first block; the others are multiples of it.", at_least=1, at_most=2**12
    )
    attention_resolution: int = _setting(
        32,
        "Networks",
        "Feature map size, in pixels, after which the attention block stands in both networks; 0: none.",
        choices=(0, *attention_places(max(IMAGE_SIZES))),
    )
    attention_block: str = _setting(
        "attention",
        "Networks",
        "What stands there: self-attention, or the residual block of the paper's control experiment.",
        choices=("attention", "residual"),
    )
    attention_pooling: bool = _setting(
        True, "Networks", "Pool keys and values 2x2, as the reference does; --noattention_pooling is the paper's text."
    )
    generator_spectral_norm: bool = _setting(True, "Networks", "Spectral normalisation of the generator.")
    discriminator_spectral_norm: bool = _setting(True, "Networks", "Spectral normalisation of the discriminator.")
    spectral_norm_gradient: bool = _setting(
        True, "Networks", "Let gradients flow through the power iteration, as in the reference."
    )
    spectral_norm_epsilon: float = _setting(1e-12, "Networks", "Added to the vector norms of the power iteration.", above=0)
    batch_norm_decay: float = _setting(
        0.0,
        "Networks",
        "Decay of batch norm's moving averages; 0: the reference's, 0.999 and, in the last one, 0.9999.",
        at_least=0,
        below=1,
    )
    sync_batch_norm: bool = _setting(False, "Networks", "Batch moments over all replicas; the reference takes them per replica.")

    # Optimisation.
    loss_type: str = _setting(
        "hinge", "Optimisation", "Adversarial loss: hinge, or kl (softplus in place of the margin).", choices=("hinge", "kl")
    )
    generator_learning_rate: float = _setting(1e-4, "Optimisation", "Adam's learning rate for the generator.", above=0)
    discriminator_learning_rate: float = _setting(4e-4, "Optimisation", "Adam's learning rate for the discriminator.", above=0)
    beta1: float = _setting(0.0, "Optimisation", "Adam's decay of the first moment.", at_least=0, below=1)
    beta2: float = _setting(0.999, "Optimisation", "Adam's decay of the second moment.", at_least=0, below=1)
    adam_epsilon: float = _setting(1e-8, "Optimisation", "Adam's epsilon, outside the bias correction.", above=0)
    g_step: int = _setting(1, "Optimisation", "Generator updates per step.", at_least=1, at_most=2**16)
    d_step: int = _setting(
        1, "Optimisation", "Discriminator updates per step, each on its own real batch.", at_least=1, at_most=2**16
    )
    accumulation_steps: int = _setting(
        1,
        "Optimisation",
        "Equal parts in which each replica computes its batch before one update; batch norm is per part.",
        at_least=1,
    )
    ema_decay: float = _setting(
        0.0, "Optimisation", "Decay per step of the averaged generator; 0: none, as in the reference.", at_least=0, below=1
    )
    augment: str = _setting(
        "",
        "Optimisation",
        "Random changes, in training alone, to all images that the discriminator sees, real and generated: the policies of "
        "DiffAugment (arXiv 2006.10738), applied in the order named. For fewer than some 20,000 images name all three, "
        "color,translation,cutout; empty: none.",
        choices=("color", "translation", "cutout"),
        several=True,
    )

    # Speed: none of these changes the function that is computed.
    steps_per_loop: int = _setting(
        20, "Speed", "Steps per call of the compiled training loop.", free=True, at_least=1, at_most=2**30
    )
    mixed_precision: str = _setting(
        "none", "Speed", "Number format of convolutions and products.", choices=("none", "bfloat16", "float16")
    )
    jit_compile: bool = _setting(False, "Speed", "Compile the training step with XLA (one replica, or TPU).", free=True)
    fused_resampling: str = _setting(
        "auto",
        "Speed",
        "Compute resampling and convolution as one strided convolution: from 8 px up (faster on CPUs), always or never.",
        choices=("auto", "always", "never"),
        free=True,
    )

    # Output.
    save_summaries_steps: int = _setting(200, "Output", "Steps between TensorBoard summaries and log lines.", free=True, at_least=1)
    save_samples_steps: int = _setting(1000, "Output", "Steps between sample grids.", free=True, at_least=1)
    save_checkpoint_steps: int = _setting(0, "Output", "Steps between checkpoints; 0: by time alone.", free=True, at_least=0)
    save_checkpoint_secs: int = _setting(1200, "Output", "Seconds between checkpoints; 0: by steps alone.", free=True, at_least=0)
    keep_checkpoints: int = _setting(5, "Output", "Most recent checkpoints to keep.", free=True, at_least=1)
    keep_checkpoint_every_steps: int = _setting(
        0, "Output", "Keep for good the first checkpoint of every so many steps; 0: none.", free=True, at_least=0
    )

    # Evaluation: the protocol of sagan-evaluate, and of sagan-train while it trains.
    classifier: str = _setting(
        "inception",
        "Evaluation",
        "Classifier behind the metrics: inception, faces, or a SavedModel's directory.",
        free=True,
    )
    classifier_logits: str = _setting("logits", "Evaluation", "Output of a SavedModel with the logits.", free=True)
    classifier_pool: str = _setting("pool_3", "Evaluation", "Output of a SavedModel with the features.", free=True)
    classifier_size: int = _setting(
        299, "Evaluation", "Height and width a SavedModel takes, in pixels.", free=True, at_least=1, at_most=2**14
    )
    num_samples: int = _setting(50_000, "Evaluation", "Generated images to measure.", free=True, at_least=2)
    stats_cache: str = _setting(
        "", "Evaluation", "Directory of cached statistics of real images; empty: cache in model_dir.", free=True
    )
    eval_every_steps: int = _setting(0, "Evaluation", "Steps between evaluations while training; 0: none.", free=True, at_least=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        for name in ("model_dir", "stats_cache"):
            object.__setattr__(self, name, files.resolve(getattr(self, name), name, checkpoints=name == "model_dir"))
        places = attention_places(self.image_size)
        if self.attention_resolution and self.attention_resolution not in places:
            raise UserError(
                f"--attention_resolution={self.attention_resolution} does not occur in both networks at "
                f"--image_size={self.image_size}: choose one of {', '.join(map(str, places))}, or 0 for no attention."
            )
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"--batch_size={self.batch_size} does not divide into --accumulation_steps={self.accumulation_steps} parts."
            )
        if self.eval_every_steps and self.distribution == "multi_worker":
            raise UserError(
                "--eval_every_steps works in one process: leave it out, and run sagan-evaluate --watch beside the training."
            )
        if not (self.save_checkpoint_steps or self.save_checkpoint_secs):
            raise UserError(
                "--save_checkpoint_steps and --save_checkpoint_secs are both 0: set one, or a run could not be resumed."
            )

    def replace(self, **changes: Any) -> "Config":
        """Returns a copy with some settings changed.

        Raises:
          UserError: if the copy would be impossible.
        """
        return dataclasses.replace(self, **changes)

    def non_default(self) -> dict[str, Any]:
        """Returns the settings that differ from their defaults, without `model_dir`."""
        fields = [field for field in dataclasses.fields(self) if field.name != "model_dir"]
        return {field.name: getattr(self, field.name) for field in fields if getattr(self, field.name) != field.default}

    def to_json(self) -> str:
        """Returns the settings as JSON text; `model_dir` is left out, so that a run can be moved."""
        settings = dataclasses.asdict(self)
        del settings["model_dir"]
        return json.dumps(settings, indent=2) + "\n"


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Returns the value of a setting in the setting's type; raises `UserError` if it cannot be."""
    kind: type = type(field.default)
    accepted, description, bounds = _KINDS[kind]
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"--{field.name}={value!r} is not {description}.")
    choices, several = field.metadata["choices"], field.metadata["several"]
    if several:
        named = str(value).split(",") if value else []
        if len(set(named) & set(choices)) < len(named):
            raise UserError(
                f"--{field.name}={value} must name some of {', '.join(choices)}, none twice, with commas alone between."
            )
    elif choices and value not in choices:
        raise UserError(f"--{field.name}={value} is not one of {', '.join(map(str, choices))}.")
    bounds = bounds | field.metadata["bounds"]
    for names in (("at_least", "above", "below"), ("at_most",)):
        limits = {name: bounds[name] for name in names if name in bounds}
        if not all(_HOLDS[name](value, limit) for name, limit in limits.items()):  # NaN keeps no bound.
            raise UserError(f"--{field.name}={value} must be {' and '.join(_words(*limit) for limit in limits.items())}.")
    return kind(value)


def _words(bound: str, limit: float) -> str:
    """Returns a bound as a sentence names it: "at least 1", "below 2**31"."""
    if (bound, limit) == ("above", 0):
        return "positive"
    power = limit.bit_length() - 1 if isinstance(limit, int) else 0
    return f"{bound.replace('_', ' ')} {f'2**{power}' if power > 9 and limit == 2**power else limit}"


def show(value: Any) -> str:
    """Returns a setting, or an entry of a protocol, as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return json.dumps(value) if isinstance(value, bool) or value == "" else str(value)


def reproduce_command(config: Config, model_dir: str) -> str:
    """Returns the shell command that trains with the same settings into `model_dir`."""
    words = ["sagan-train"]
    for name, value in config.non_default().items():
        words.append(f"--{'' if value else 'no'}{name}" if isinstance(value, bool) else f"--{name}={value}")
    return " ".join(shlex.quote(word) for word in [*words, f"--model_dir={model_dir}"])


def is_saved(model_dir: str) -> bool:
    """Returns whether `model_dir` holds a configuration.

    Raises:
      UserError: if that cannot be known.
    """
    path = files.join(files.resolve(model_dir, "model_dir", checkpoints=True), CONFIG_FILE)
    try:
        return files.exists(path)
    except OSError as error:
        raise UserError(
            f"--model_dir={model_dir} cannot be read ({error.strerror}): check the path, the network and your rights."
        ) from error


def load(model_dir: str) -> Config:
    """Returns the configuration saved in `model_dir`.

    Raises:
      UserError: if there is none, or it cannot be read.
    """
    saved, model_dir = is_saved(model_dir), files.resolve(model_dir, "model_dir")
    path = files.join(model_dir, CONFIG_FILE)
    if not saved and not files.is_dir(model_dir):
        raise UserError(f"--model_dir={model_dir} does not exist.")
    if not saved:
        raise UserError(f"--model_dir={model_dir} holds no {CONFIG_FILE}: it is not the directory of a training run.")
    try:
        settings = files.read_json(path)
        if not isinstance(settings, dict):
            raise ValueError("it does not hold settings by name")
        settings = {name: value for name, value in settings.items() if name not in REMOVED}
        if unknown := settings.keys() - {field.name for field in dataclasses.fields(Config)}:
            raise ValueError(f"there is no setting {min(unknown)}")
        return Config(**{**settings, "model_dir": model_dir})
    except (OSError, ValueError) as error:
        reason = f"{path} cannot be read as a configuration ({str(error).removesuffix('.')})"
        raise UserError(f"{reason}; restore it, or train into a new directory.") from error


def reconcile(saved: Config, given: dict[str, Any]) -> Config:
    """Returns the saved configuration with the settings given anew.

    Args:
      saved: the configuration of an existing `model_dir`.
      given: settings that were named explicitly, by field name.

    Raises:
      UserError: if one of them would make it another experiment.
    """
    for field in dataclasses.fields(Config):
        if field.name in given and not field.metadata["free"]:
            before, after = getattr(saved, field.name), given[field.name]
            if before != after and (field.name, after) != ("num_classes", -1):
                raise UserError(
                    f"--model_dir={saved.model_dir} was trained with --{field.name}={before}, not {after}: "
                    "leave the flag out, or choose another --model_dir."
                )
    free = {name: value for name, value in given.items() if name != "num_classes"}
    return saved.replace(**free)


def expand_flagfile(path: str) -> list[str]:
    """Returns the flags in a flagfile, those of the flagfiles that it names among them.

    Raises:
      UserError: naming the file that cannot be read.
    """
    return expand_flagfiles([f"--flagfile={path}"])


def expand_flagfiles(words: Iterable[str], within: tuple[str, ...] = ()) -> list[str]:
    """Returns flags with each `--flagfile=FILE` replaced by the flags in that file.

    A file that another one names is looked for beside it, so that an experiment can be read from any directory.

    Args:
      words: of a command line, or lines of a flagfile.
      within: the flagfiles that led to these words, the outermost first.

    Raises:
      UserError: naming the file that cannot be read.
    """
    expanded: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, path = word.partition("=")
        if name in ("--flagfile", "-flagfile") and not equals:
            path = next(rest, "")
        if name not in ("--flagfile", "-flagfile") or not path:  # What names no file is absl's to judge.
            expanded.append(word)
            continue
        path = os.path.normpath(os.path.join(os.path.dirname(within[-1]) if within else "", os.path.expanduser(path)))
        try:
            if path in within:
                raise ValueError("it names itself")
            with open(path, encoding="utf-8") as file:
                lines = [line.strip() for line in file if not line.startswith(("#", "//"))]
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a flagfile: {getattr(error, 'strerror', error)}.") from error
        expanded += expand_flagfiles(filter(None, lines), (*within, path))
    return expanded
