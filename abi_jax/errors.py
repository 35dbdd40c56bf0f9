"""The one exception the command line turns into a message and exit code 2."""


class InputError(ValueError):
    """Something the user gave us cannot be used.

    The message names the thing, its value and what was expected, so that it can be
    printed without a traceback. Bugs raise anything else and keep theirs.
    """
