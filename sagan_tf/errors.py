"""The one exception that ends a command with a sentence instead of a traceback."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad input that the person running the command can put right.

    Its message is one or two sentences: what is wrong, quoting what was received, and
    what to do about it. The commands print it and exit with code 1.
    """
