"""Where in a rendered prompt the policy, the memory, the history, the question and the answer's header are.

Two ways, exact for any template that prints contents as they are: the conversation without its last
turns renders to a prefix of the whole; and a turn whose content is replaced by one unusual character
shows where that content stands.
"""

from collections.abc import Sequence

from abi_jax.errors import InputError
from abi_jax.text.roles import Role
from abi_jax.text.template import TemplateRefusal
from abi_jax.text.tokenizer import Tokenizer

Span = tuple[int, int, Role]
Turn = dict[str, str]

MEMORY_HEADING = "What is remembered from before:"
# Put inside control tokens that a user typed, so that they are read as the text they are.
BREAK = "\ue0ff"
# Stands in for a content to see where it goes.
PROBE = "\ue0fe"


class Layout:
    """The text of a prompt and its spans.

    text: the prompt up to where the answer begins; it may hold `BREAK`, at which it must be cut
    before it is tokenised. spans: half-open character ranges with their roles; later ones win.
    """

    def __init__(self, tokenizer: Tokenizer, policy: str, turns: Sequence[Turn], memory: Sequence[str]) -> None:
        """Renders `turns`, which alternate and end with the user's. Raises `InputError` as `chat.render` does."""
        self._control = tokenizer.control
        self._template = tokenizer.chat_template
        self._bos = tokenizer.special_tokens["bos_token"]
        self._ends = [tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids]
        self._turns = [t | {"content": self._guard(t["content"])} for t in turns]
        texts = [self._guard(m).strip() for m in memory if m.strip()]
        self._native = texts if self._template.takes_memory else []
        # A template with no place for memory gets it at the end of the policy.
        block = "\n".join([MEMORY_HEADING, *(f"- {t}" for t in texts)]) if texts and not self._native else ""
        self._remembered = self._native or ([block] if block else [])
        self._system = "\n\n".join(s for s in (self._guard(policy).strip(), block) if s)
        self._folded = bool(self._system) and not self._takes_system()
        self.text = self._render(self._turns, self._system, self._native, header=True)
        # Turns and policy are looked for where memory does not get between them.
        self._plain = self._render(self._turns, self._system, header=True) if self._native else self.text
        self.spans = self._find_spans()

    def answer(self, response: str) -> str:
        """Returns what the template writes after the prompt when the answer is `response`."""
        content = self._guard(response).strip()
        if not content:
            raise InputError("the response is empty; expected text")
        full = self._render([*self._turns, _assistant(content)], self._system, self._native)
        if full.startswith(self.text):
            return full[len(self.text) :]
        probe = self._render([*self._turns, _assistant(PROBE)], self._system, self._native)
        return content + probe.partition(PROBE)[2]

    def _guard(self, content: str) -> str:
        plain = content.replace(BREAK, "").replace(PROBE, "")
        return self._control.sub(lambda m: m[0][:1] + BREAK + m[0][1:], plain)

    def _takes_system(self) -> bool:
        try:
            return PROBE in self._template.render([_system(PROBE), *self._turns])
        except TemplateRefusal:
            return False

    def _render(self, turns: list[Turn], system: str, memory: Sequence[str] = (), header: bool = False) -> str:
        if self._folded:
            at = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
            if at is not None:
                folded = turns[at] | {"content": f"{system}\n\n{turns[at]['content']}"}
                turns = [*turns[:at], folded, *turns[at + 1 :]]
        elif system:
            turns = [_system(system), *turns]
        try:
            return self._template.render(turns, memory, generation_prompt=header)
        except TemplateRefusal as error:
            raise InputError(f"the chat template refuses a conversation of {len(turns)} messages: {error}") from error

    def _find_spans(self) -> list[Span]:
        bare = self._render(self._turns, self._system, self._native)
        header = len(bare) if self.text.startswith(bare) else len(self.text)
        policy, late = self._policy()
        question = max(policy, self._question()) if len(self._turns) > 1 else policy
        spans = [(0, policy, Role.POLICY), (policy, question, Role.HISTORY), (question, header, Role.INPUT), *late]
        cursor = question if self._native else 0
        for memory in self._remembered:
            at = max(self.text.find(memory, cursor), self.text.find(memory) if cursor == question else -1)
            if at < 0:
                raise InputError("the chat template leaves the memory out; expected it to be rendered")
            cursor = at + len(memory)
            lo, hi = self._widen(at, cursor) if self._native else (at, cursor)
            spans.append((lo, hi, Role.MEMORY))
        return spans

    def _policy(self) -> tuple[int, list[Span]]:
        """Returns where the policy ends, and its span if it stands elsewhere than at the beginning.

        An opening token counts as policy, as does what a template writes there by itself: every
        persona may read it.
        """
        opening = len(self._bos) if self._bos and self._plain.startswith(self._bos) else 0
        first, _ = self._content(0)
        if not self._system:
            return self._after_end(opening, first), []
        if not self._folded:
            try:
                alone = self._template.render([_system(self._system)])
            except TemplateRefusal:
                alone = ""
            if self._system in alone and self._plain.startswith(alone):
                return len(alone), []
        lo, hi = self._content(None)
        if lo > first:  # some templates put the policy into the newest question
            return opening, [(lo, hi, Role.POLICY)]
        return self._after_end(hi, first), []

    def _question(self) -> int:
        """Returns where the last user turn begins."""
        earlier = self._render(self._turns[:-1], self._system)
        if self._plain.startswith(earlier):
            return len(earlier)
        return self._after_end(self._content(len(self._turns) - 2)[1], self._content(len(self._turns) - 1)[0])

    def _content(self, turn: int | None) -> tuple[int, int]:
        """Returns where the content of a turn, or of the policy (None), stands in the text without memory."""
        turns = [t | {"content": PROBE} if at == turn else t for at, t in enumerate(self._turns)]
        probe = self._render(turns, PROBE if turn is None else self._system, header=True)
        before, _, after = probe.partition(PROBE)
        lo, hi = len(before), len(self._plain) - len(after)
        if lo <= hi and self._plain.startswith(before) and self._plain.endswith(after) and len(before) < len(probe):
            return lo, hi
        content = (self._system if turn is None else self._turns[turn]["content"]).strip()
        at = self._plain.find(content)
        if at < 0:
            raise InputError(f"the chat template leaves this text out; expected it to be rendered: {content[:80]!r}")
        return at, at + len(content)

    def _after_end(self, lo: int, hi: int) -> int:
        """Returns the place after the last end token between `lo` and `hi` and its white space, or `lo`."""
        gap = self._plain[lo : max(lo, hi)]
        cut = max((at + len(end) for end in self._ends if end and (at := gap.rfind(end)) >= 0), default=0)
        rest = gap[cut:]
        return lo + cut + (len(rest) - len(rest.lstrip()) if cut else 0)

    def _widen(self, lo: int, hi: int) -> tuple[int, int]:
        """Takes the control tokens that touch text[lo:hi] on either side into the span."""
        before = [m.start() for m in self._control.finditer(self.text, 0, lo) if m.end() == lo]
        after = self._control.match(self.text, hi)
        return (before[-1] if before else lo), (after.end() if after else hi)


def _assistant(content: str) -> Turn:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Turn:
    return {"role": "system", "content": content}
