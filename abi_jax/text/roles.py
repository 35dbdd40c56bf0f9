"""What each position of a prompt is for. Attention masks and reading rules are written in these terms."""

from enum import IntEnum


class Role(IntEnum):
    """Segment role of a token. The numbers are stored in checkpoints: append, never reorder."""

    PADDING = 0
    POLICY = 1
    MEMORY = 2
    HISTORY = 3
    INPUT = 4
    RESPONSE = 5


NUM_ROLES = len(Role)

# What a reading rule may name: everything but padding, which nobody reads.
READABLE = tuple(role.name.lower() for role in Role if role is not Role.PADDING)
