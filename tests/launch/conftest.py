"""The trained model that several tests of this folder start from."""

from tests.train.tiny import trained

__all__ = ["trained"]
