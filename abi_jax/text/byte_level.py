"""Tokenizers that write bytes as characters: what single tokens add to a text, whatever stands beside them."""

import json

import tokenizers


def _alphabet() -> dict[str, bytes]:
    """The characters that byte-level tokenizers write bytes with, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in plain]
    return {chr(b): bytes([b]) for b in plain} | {chr(256 + i): bytes([b]) for i, b in enumerate(shifted)}


BYTES = _alphabet()


class Spoken(dict[int, bytes]):
    """Id -> the bytes that it adds to a decoded text, filled as it is asked; nothing of control tokens."""

    def __init__(self, backend: tokenizers.Tokenizer, special: frozenset[int]) -> None:
        super().__init__()
        self._backend, self._special = backend, special

    def __missing__(self, token: int) -> bytes:
        text = None if token in self._special else self._backend.id_to_token(token)
        if text is None:
            made = b""
        elif all(c in BYTES for c in text):
            made = b"".join(BYTES[c] for c in text)
        else:  # a token that was added as text
            made = text.encode()
        self[token] = made
        return made


def is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether a text is the bytes of its tokens, one after the other."""
    decoder = backend.decoder
    return decoder is not None and json.loads(decoder.__getstate__()).get("type") == "ByteLevel"
