r"""Split a model's turn into its thinking and its answer.

    read_turn("<think>ice?</think>It is \\boxed{B}")  ->  Turn("ice?", "It is \\boxed{B}")
    read_turn("<think>ice? or sand")                  ->  Turn("ice? or sand", None)

If a tokenizer has tokens for the marks of thinking, these tokens are the marks, special or not, and
the same characters in other tokens are text. Otherwise the marks are looked for in the text. The
prompt may already have opened the thinking (`TurnReader.opened`). A thought that never ends has no
answer: it was cut off, whatever finish reason the engine reports.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = r"think(?:ing)?|thoughts?|reasoning|reflection|scratchpad"
_TAG = re.compile(
    # Also `<seed:think>`, `<mm:think>`, `<ifm|think_fast>`
    rf"<(?P<a>/?)(?:[a-z]{{1,8}}[:|])?(?i:{_NAMES})(?::[a-z0-9]{{1,20}}|_fast(?:er)?)?>"
    r"|\[(?P<b>/?)THINK\]|◁(?P<c>/?)think▷"
    r"|<\|(?:[a-z]{1,8}:)?(?:begin|(?P<d>end))_(?:of_thought|think)(?::[a-z]{1,8})?\|>"
    r"|<\|(?:START|(?P<e>END))_THINKING\|>|<\|channel>|<(?P<f>channel\|>)"
)
LABEL = "thought\n"
"""What Gemma 4 writes after the mark `<|channel>` that begins its thinking."""
CHANNEL = "<|channel|>"
_FINAL = f"{CHANNEL}final<|message|>"
_MESSAGE = re.compile(
    r"<\|channel\|>\s*(?P<name>[A-Za-z]+)[^<]*<\|message\|>(?P<said>(?:[^<]|<(?!\|))*)"
)
_BARE_CHANNELS = re.compile(r"analysis(?P<thought>(?s:.*))assistantfinal")
"""The channels after their special tokens were removed from the text."""
_TAIL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model wrote in its turn."""

    thinking: str | None
    """None if the turn contains no mark of thinking."""
    answer: str | None
    """None if the thinking never ended."""


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """How the models of one tokenizer write their thinking before an answer."""

    begin: str = "<think>\n"
    end: str = "\n</think>\n\n"
    answer: str = ""
    """The text that begins an answer without thinking."""

    @classmethod
    def of(cls, tokenizer: Any) -> ThinkingFormat:
        """The format whose marks are in the tokenizer or its template; `<think>` by default."""
        known = {*tokenizer.get_added_vocab()}
        template = str(tokenizer.chat_template)
        found = (each for mark, each in _FORMATS.items() if mark in known or mark in template)
        return next(found, cls())

    def write(self, thinking: str | None, answer: str) -> str:
        """A turn with this thinking; None writes a turn without thinking."""
        if thinking is None:
            return f"{self.answer}{answer}"
        return f"{self.begin}{thinking}{self.end}{answer}"


_FORMATS = {
    CHANNEL: ThinkingFormat(
        f"{CHANNEL}analysis<|message|>", f"<|end|><|start|>assistant{_FINAL}", _FINAL
    ),
    "<|channel>": ThinkingFormat(f"<|channel>{LABEL}", "<channel|>"),
    "[THINK]": ThinkingFormat("[THINK]", "[/THINK]"),
    "<think>": ThinkingFormat(),
    **{
        f"<{name}>": ThinkingFormat(f"<{name}>\n", f"\n</{name}>\n\n")
        for name in ("reasoning", "thinking", "thought", "seed:think", "mm:think")
    },
}


def is_mark(token: str) -> bool:
    """Whether a token begins or ends a thought, or a channel."""
    return token == CHANNEL or _TAG.fullmatch(token) is not None


def has_mark(text: str) -> bool:
    """Whether a text, such as a template, contains a mark that begins or ends a thought."""
    return CHANNEL in text or _TAG.search(text) is not None


def read_turn(text: str, opened: str = "") -> Turn:
    """Split the text of a turn; `opened` is the part that the prompt wrote, such as `<think>`.

    A closing mark without an opening one ends a thought that was begun at the start of the text.
    """
    if CHANNEL in text or CHANNEL in opened:
        return _read_channels(opened + text)
    if bare := _BARE_CHANNELS.match(text):
        return Turn(bare["thought"].strip(), text[bare.end() :])
    return _read_pieces(_pieces(opened + text))


def _read_channels(text: str) -> Turn:
    messages = [(message["name"], message["said"]) for message in _MESSAGE.finditer(text)]
    thoughts = [said.strip() for name, said in messages if name != "final"]
    answers = [said for name, said in messages if name == "final"]
    thinking = "\n\n".join(thoughts) if thoughts else None
    return Turn(thinking, answers[-1] if answers else None)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    is_mark: bool = False

    @property
    def closes(self) -> bool:
        found = _TAG.match(self.text)
        return found is not None and any(found.groups())


def _pieces(text: str, skip: frozenset[str] = frozenset()) -> Iterator[_Piece]:
    """A text cut at its marks; marks in `skip` are treated as text."""
    start = 0
    for tag in _TAG.finditer(text):
        if tag.group() not in skip:
            yield _Piece(text[start : tag.start()])
            yield _Piece(tag.group(), is_mark=True)
            start = tag.end()
    yield _Piece(text[start:])


def _read_pieces(pieces: Iterable[_Piece]) -> Turn:
    thoughts: list[str] = []
    said: list[str] = []
    inside = is_marked = False
    label = ""
    for piece in pieces:
        if not piece.is_mark:
            (thoughts if inside else said).append(piece.text.removeprefix(label))
            label = ""
            continue
        is_marked = True
        label = LABEL if piece.text == "<|channel>" else ""
        if piece.closes and not inside:  # everything before it was thinking
            thoughts += said
            said = []
        inside = not piece.closes
    thinking = "".join(thoughts).strip() if is_marked else None
    return Turn(thinking, None if inside else "".join(said))


class TurnReader:
    """Reads the turns of the models of one tokenizer by their token ids."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.get_added_vocab()
        self._tokenizer = tokenizer
        self._marks = {number: token for token, number in added.items() if _TAG.fullmatch(token)}
        self._as_text = frozenset(self._marks.values())
        self._has_channels = CHANNEL in added

    @property
    def mark_ids(self) -> frozenset[int]:
        """The tokens that begin and end thoughts."""
        return frozenset(self._marks)

    def opened(self, prompt: Sequence[int], question: str) -> str:
        """How the prompt begins the model's thinking, such as `<think>\\n`; "" if it does not.

        Only what the template writes after the question counts: a question may contain any mark.
        """
        ids = list(prompt)
        shown = str(self._tokenizer.decode(ids))
        _, asked, tail = shown.rpartition(question.strip())
        if not asked.strip():
            tail = str(self._tokenizer.decode(ids[-_TAIL_TOKENS:]))
        if read_turn(tail).answer is not None:
            return ""
        begin = tail.rfind(CHANNEL) if CHANNEL in tail else [*_TAG.finditer(tail)][-1].start()
        return tail[begin:]

    def read(self, ids: Sequence[int], opened: str = "") -> Turn:
        """Split a turn that is given as token ids."""
        if self._has_channels:
            return self._read_channels(ids, opened)
        begun = [_Piece(opened.strip(), is_mark=True)] if opened else []
        return _read_pieces(itertools.chain(begun, self._pieces_of(ids)))

    def _read_channels(self, ids: Sequence[int], opened: str) -> Turn:
        text = opened + str(self._tokenizer.decode(list(ids)))
        if CHANNEL in text:
            return _read_channels(text)
        return Turn(None, self._decode(ids))

    def num_marks(self, ids: Sequence[int]) -> int:
        """The number of marks of thinking in the ids."""
        return sum(piece.is_mark for piece in self._pieces_of(ids))

    def _pieces_of(self, ids: Sequence[int]) -> Iterator[_Piece]:
        for is_mark, run in itertools.groupby(ids, key=self._marks.__contains__):
            if is_mark:
                yield from (_Piece(self._marks[number], is_mark=True) for number in run)
            else:
                yield from _pieces(self._decode(run), self._as_text)

    def _decode(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def ids_of_text(self, ids: Sequence[int], text: str) -> list[int]:
        """The sampled ids up to the end of the text, which ends before a stop string.

        A token that spans the end of the text and the start of the stop string is tokenized again.
        """
        wanted = text.lstrip()
        if len(self._decode(ids).lstrip()) <= len(wanted):
            return list(ids)
        if not self._decode(ids).lstrip().startswith(wanted):
            return list(ids)  # the text includes its special tokens
        low, high = 0, len(ids)  # find the fewest ids that contain the complete text
        while low < high:
            middle = (low + high) // 2
            if len(self._decode(ids[:middle]).lstrip()) < len(wanted):
                low = middle + 1
            else:
                high = middle
        if self._decode(ids[:low]).lstrip() == wanted:
            return list(ids[:low])
        before = self._decode(ids[: low - 1]).lstrip()
        if not wanted.startswith(before):  # one character consists of several tokens
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        rest = self._tokenizer(wanted[len(before) :], add_special_tokens=False)["input_ids"]
        return [*ids[: low - 1], *rest]
