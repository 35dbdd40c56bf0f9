"""Encryption at rest: who has the key reads everything, who has not sees sizes. docs/wdbx-format.md, "Encryption"."""
