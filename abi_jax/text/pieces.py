"""The bytes that single tokens stand for, which need not be whole characters."""

from functools import cached_property

from abi_jax.text.byte_level import BYTES
from abi_jax.text.tokenizer import Tokenizer


class Pieces:
    """Tokens one at a time, of a tokenizer. Immutable and safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def bytes(self, token: int) -> bytes:
        """The bytes of a token; of a control token, its name's; of an id that stands for none, nothing."""
        backend = self.tokenizer.backend
        text = backend.id_to_token(token)
        if text is None:
            return b""
        if token in self._added:
            return text.encode()
        if self._byte_level:
            return b"".join(BYTES[c] if c in BYTES else c.encode() for c in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode() if self._low_line else text.encode()

    def text(self, token: int) -> str:
        """The token as text; where its bytes are not, OpenAI's `bytes:\\xe2\\x80`."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    @cached_property
    def longest(self) -> int | None:
        """The most bytes of text that one token stands for; None where text may lose more on its way to tokens."""
        if not self._byte_level or self.tokenizer.backend.normalizer is not None:
            return None
        return max(len(text.encode()) for text in self.tokenizer.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.backend.get_added_tokens_decoder())

    @cached_property
    def _decoder(self) -> str:
        decoder = self.tokenizer.backend.decoder
        return "" if decoder is None else decoder.__getstate__().decode()

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in self._decoder

    @cached_property
    def _low_line(self) -> bool:
        return "\u2581" in self._decoder or "Metaspace" in self._decoder
