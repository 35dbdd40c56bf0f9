"""Text as it is generated: whole characters only, stop strings never shown."""

import codecs
from collections.abc import Sequence

from abi_jax.text.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
# A run of bytes that is still no character after so many tokens is noise: show it.
PATIENCE = 16
# The longest UTF-8 character has four bytes, so at most three may still be waiting for their last.
LONGEST_PARTIAL = 3
_UTF8 = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Turns token ids into text piece by piece.

    The pieces and the final `flush` together are `tokenizer.decode` of all ids, up to the
    stop string that is complete first. One stream serves one answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """`stop` strings end the text wherever they begin; empty ones are ignored."""
        self._tokenizer = tokenizer
        self._spoken = tokenizer.spoken
        self._bytes = _UTF8("replace")
        self.stops = tuple(s for s in stop if s)
        self._ids: list[int] = []  # a window: `_context` ids already shown, then the pending ones
        self._context = 0
        self._shown = 0  # characters of the window's text that have left the decoder
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False
        self.stop: str | None = None  # the stop string that was met

    def push(self, token: int) -> str:
        """Takes one id and returns the text that is now certain, often empty. After a stop: always empty."""
        if self.stopped:
            return ""
        if self._spoken is not None:
            piece = self._bytes.decode(self._spoken[token])
            return self._release(piece) if self.stops else piece
        if token in self._tokenizer.special_ids:
            return ""
        self._ids.append(int(token))
        return self._release(self._advance())

    def flush(self) -> str:
        """Returns what was held back; call it once, after the last id."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._ids)[self._shown :] if self._ids else ""
        piece = self._release(text + self._bytes.decode(b"", True))
        rest = "" if self.stopped else self._held
        self._ids, self._context, self._shown, self._held = [], 0, 0, ""
        return piece + rest

    def _advance(self) -> str:
        text = self._tokenizer.decode(self._ids)
        end = len(text)
        if text.endswith(UNFINISHED):
            run = end - len(text.rstrip(UNFINISHED))
            # The bytes so far may be half a character. Noise is let through, all but its end.
            noise = len(self._ids) - self._context > PATIENCE
            end -= min(run, LONGEST_PARTIAL) if noise else run
            piece = text[self._shown : end]
            self._shown = max(self._shown, end)
            if noise:
                self._forget(text)
            return piece
        piece = text[self._shown :]
        self._shown = len(text)
        if piece:
            # The last ids stay as context: some decoders treat the first word of a text differently.
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._shown = len(self._tokenizer.decode(self._ids))
        return piece

    def _forget(self, text: str) -> None:
        """Shortens a window of noise where that changes nothing, so that its cost stays bounded."""
        head, tail = self._ids[:-PATIENCE], self._ids[-PATIENCE:]
        before = self._tokenizer.decode(head)
        if len(before) <= self._shown and before + self._tokenizer.decode(tail) == text:
            self._ids, self._context, self._shown = tail, 0, self._shown - len(before)

    def _release(self, text: str) -> str:
        """Adds `text` to what is held and returns what can no longer become a stop string."""
        self._held += text
        # The stop string that is complete first wins, so that the split into tokens cannot matter.
        found = [(at + len(s), at, s) for s in self.stops if (at := self._held.find(s)) >= 0]
        if found:
            _, at, self.stop = min(found)
            piece, self._held, self.stopped = self._held[:at], "", True
            return piece
        keep = max((_overlap(self._held, s) for s in self.stops), default=0)
        cut = len(self._held) - keep
        piece, self._held = self._held[:cut], self._held[cut:]
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    if stop[0] not in text[1 - len(stop) :]:  # of most texts that is all there is to find out
        return 0
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
