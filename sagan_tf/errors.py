"""The one exception that ends a command with a sentence instead of a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input that the person running the command can put right.

    Its message is one or two sentences: what is wrong, quoting what was received, and
    what to do about it. The commands print it and exit with code 1.
    """


@contextlib.contextmanager
def writing(flag: str, path: str) -> Iterator[None]:
    """Turns what keeps the file or directory that a flag names from being written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be written ({error.strerror}): choose another.") from error
