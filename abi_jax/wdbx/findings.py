"""What `verify` finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something wrong: the file, what it holds, and what is wrong with it."""

    file: str
    holds: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file} ({self.holds}): {self.wrong}"
