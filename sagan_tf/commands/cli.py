"""What all commands share: flags made from `Config`, `--help`, and errors as sentences."""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from sagan_tf import config as config_lib
from sagan_tf.errors import UserError

__all__ = [
    "config_from_flags",
    "define_checkpoint_flags",
    "define_config_flags",
    "define_z_flags",
    "given_settings",
    "help_text",
    "run",
    "trained_config",
]

FLAGS = flags.FLAGS

_DEFINE: dict[type, Callable[..., Any]]
_DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define_config_flags(values: flags.FlagValues = FLAGS) -> None:
    """Defines one absl flag for each field of `Config`."""
    for field in dataclasses.fields(config_lib.Config):
        text, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            text += f" {'Any' if field.metadata['several'] else 'One'} of: {', '.join(map(str, choices))}."
        _DEFINE[type(field.default)](field.name, field.default, text, flag_values=values)


def define_checkpoint_flags() -> None:
    """Defines the flags of every command that reads a checkpoint of a run."""
    flags.DEFINE_integer("checkpoint_step", None, "Step of the checkpoint to read; by default the newest.")
    flags.DEFINE_boolean("use_ema", None, "Use the averaged generator; by default if the run has one.")


def define_z_flags() -> None:
    """Defines the flags of every command that draws z."""
    flags.DEFINE_integer("sample_seed", 0, "Seed of z.", lower_bound=0)
    flags.DEFINE_float("truncation", 0.0, "Largest absolute value of a component of z; 0: no bound.", lower_bound=0.0)


def given_settings(values: flags.FlagValues = FLAGS) -> dict[str, Any]:
    """Returns the settings that the flags name, and no defaults."""
    names = [field.name for field in dataclasses.fields(config_lib.Config)]
    return {name: values[name].value for name in names if values[name].present}


def config_from_flags(values: flags.FlagValues = FLAGS) -> config_lib.Config:
    """Returns the configuration meant by the flags.

    A `model_dir` that already holds a configuration supplies every setting that the command
    line does not name.

    Raises:
      UserError: if a setting is impossible, or contradicts that of `model_dir`.
    """
    if values.model_dir and config_lib.is_saved(values.model_dir):
        return trained_config(values)
    return config_lib.Config(**given_settings(values))


def trained_config(values: flags.FlagValues = FLAGS) -> config_lib.Config:
    """Returns the configuration of the training run that `--model_dir` names.

    Raises:
      UserError: if the flag is missing, the directory is not that of a run, or a setting contradicts it.
    """
    if not values.model_dir:
        raise UserError("--model_dir is missing: name the directory of a training run.")
    return config_lib.reconcile(config_lib.load(values.model_dir), given_settings(values))


def run(main: Callable[[], None], define_flags: Callable[[], None] | None = None, settings: bool = True) -> None:
    """Runs a command: the body of every console script.

    Args:
      main: does the work; a `UserError` it raises is printed and exits with code 1.
      define_flags: defines the flags that only this command has.
      settings: whether it takes those of `Config` as well.
    """
    own_flags: list[str] = []
    if define_flags:
        before = set(FLAGS)
        define_flags()
        own_flags = sorted(set(FLAGS) - before)
    if settings:
        define_config_flags()

    def parse(argv: list[str]) -> list[str]:
        if any(argument in ("--help", "-help", "-h", "--helpshort") for argument in argv[1:]):
            print(help_text(main.__doc__ or "", own_flags, settings))
            sys.exit(0)
        try:
            rest = FLAGS([argv[0], *config_lib.expand_flagfiles(argv[1:])])
        except UserError as error:
            _fail(str(error))
        except flags.Error as error:
            _fail(f"{error} (--help lists the flags.)")
        if len(rest) > 1:
            _fail(f"{rest[1]!r} is not a flag: flags start with -- (--help lists them).")
        return rest

    def guarded(_: list[str]) -> None:
        try:
            main()
        except UserError as error:
            _fail(str(error))

    logging.set_verbosity(logging.INFO)
    app.run(guarded, flags_parser=parse)


def help_text(purpose: str, own_flags: list[str], settings: bool = True) -> str:
    """Returns the text of `--help`: the command's own flags, then the settings by group."""
    lines = [inspect.cleandoc(purpose), ""]
    groups = {"This command": own_flags} if own_flags else {}
    for name in config_lib.GROUPS if settings else ():
        groups[name] = [f.name for f in dataclasses.fields(config_lib.Config) if f.metadata["group"] == name]
    for group, names in groups.items():
        lines += [f"{group}:"]
        for name in names:
            flag = FLAGS[name]
            default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
            value = "''" if default == "" else str(default).lower() if flag.boolean else default
            lines += [f"  --{'[no]' if flag.boolean else ''}{name}  (default: {value})", f"      {flag.help}"]
        lines += [""]
    lines += [
        "--flagfile=FILE reads flags from a file; flags/ in the repository, share/sagan_tf/flags/ of an installed wheel, holds one",
        "for each experiment.",
    ]
    return "\n".join(lines)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
