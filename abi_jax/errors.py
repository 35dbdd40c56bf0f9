"""The one exception the command line turns into a message and exit code 2."""


class InputError(ValueError):
    """Something the user gave us cannot be used.

    The message names the thing, its value and what was expected, so that it can be
    printed without a traceback. Bugs raise anything else and keep theirs.
    """


class Preempted(Exception):
    """A run was asked to stop, and did so after `step`, which is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on from there")
        self.step = step
