"""The one exception that means "the caller gave something that cannot work"."""


class InputError(ValueError):
    """Bad input, said in one line: the value, what was expected, what to do.

    `run.py` prints the line and exits with status 2; from Python it is an ordinary ValueError.
    """
