"""From chat messages to token ids and back: the only place where a chat template is applied.

Training, synthesis and evaluation all get their prompt ids from `prompt_ids`, so they cannot
diverge, and no text that already contains a BOS is tokenized a second time.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cluster.errors import InputError
from cluster.inference.engine import (
    Beginning,
    Completion,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.thinking import ThinkingFormat, TurnReader, is_mark, read_turn

# For base models, whose tokenizer has no chat template: plain text with one paragraph per role.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}{{ message.role.capitalize() }}: {{ message.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


PLAIN_STOPS = ("\nUser:",)
"""Where a model that continues the plain text would begin the next turn."""

CLOCK = "strftime_now"
"""The function with which a template writes today's date. As a template argument it is a fixed
date, such as 2026-11-29, that the template writes instead."""

_PLAIN = re.compile(r"[\w\s]*")
"""Text that marks nothing: Gemma's tokenizer has the empty line as an added token."""

_PROBE = "What is 17 plus 25?"
_ANSWER = "It is forty-two."
_THOUGHT = "Seventeen and twenty-five make forty-two."
_OPENING_TAG = re.compile(r"(?P<bracket>[<\[]\|?)(?P<name>[^<>\[\]|/\s]{1,40})\|?[>\]]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model sees before it answers."""

    token_ids: list[int]
    opened: str
    """How the template begins the model's thinking, such as `<think>`; usually empty."""


class ChatModel:
    """The tokenizer of a model, and how it converts prompts and answers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._reader = TurnReader(tokenizer)
        self._end = end_of_turn(tokenizer)
        self._thinking = ThinkingFormat.of(tokenizer)
        self._ends = control_token_ids(tokenizer) - self._reader.mark_ids

    @classmethod
    def load(cls, model: str) -> ChatModel:
        """Load a local folder or hub name. Raises `InputError` as `load_tokenizer` does."""
        return cls(load_tokenizer(model))

    def prompt(
        self, messages: Sequence[Mapping[str, str]], template_args: Mapping[str, Any]
    ) -> Prompt:
        """The prompt for a chat."""
        ids = prompt_ids(self.tokenizer, messages, template_args)
        return Prompt(ids, self._reader.opened(ids, messages[-1]["content"]))

    def read(self, sampled: Completion, prompt: Prompt) -> Completion:
        """Split a completion into thinking and answer, and drop ids that are not in its text."""
        if not sampled.token_ids:
            return replace(sampled, turn=read_turn(sampled.text, prompt.opened))
        ids = self._reader.ids_of_text(sampled.token_ids, sampled.text)
        turn = self._reader.read(ids, prompt.opened)
        if turn.thinking is None:
            turn = replace(turn, answer=sampled.text)
        return replace(sampled, token_ids=ids, num_counted_tokens=sampled.num_tokens, turn=turn)

    def begun_ids(self, prompt: Prompt, beginning: Beginning, limit: int) -> list[int]:
        """The ids of a prompt and of a beginning of its answer, at most `limit`.

        An open thought is closed before the cue, and the end of a long answer is left out. Raises
        `PromptTooLongError` where the prompt and the cue alone are too long.
        """
        answered = beginning.answered
        said = self._without_end(answered.token_ids) if answered else []
        cue = beginning.cue if answered else self._begin(prompt) + beginning.cue.lstrip()
        room = limit - len(prompt.token_ids) - len(self._closed(cue))
        if room < 0:
            raise PromptTooLongError(
                f"the prompt and the cue have {limit - room} tokens, and {limit} fit the context"
            )
        said = said[:room]
        is_open = self._reader.read(said, prompt.opened).answer is None
        tail = self._closed(cue) if is_open else target_ids(self.tokenizer, cue)
        return [*prompt.token_ids, *said, *tail]

    def _begin(self, prompt: Prompt) -> str:
        """What a template writes before an answer without thinking, if it is not thinking yet."""
        return "" if prompt.opened else self._thinking.answer

    def _closed(self, cue: str) -> list[int]:
        """The ids that close a thought, and the cue."""
        return target_ids(self.tokenizer, self._thinking.end + cue)

    def _without_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of an answer without the control tokens that end it."""
        kept = len(ids)
        while kept and ids[kept - 1] in self._ends:
            kept -= 1
        return list(ids[:kept])

    def option_ids(self, beginning: Beginning) -> list[int]:
        """The token of each option right behind the cue; empty if one of them is not one token, or
        if two share it."""
        cue = target_ids(self.tokenizer, beginning.cue)
        both = [target_ids(self.tokenizer, beginning.cue + each) for each in beginning.options]
        if any(len(ids) != len(cue) + 1 or ids[:-1] != cue for ids in both):
            return []
        found = [ids[-1] for ids in both]
        return found if len(set(found)) == len(found) else []

    def with_stops(self, sampling: SamplingSettings) -> SamplingSettings:
        """The sampling settings, which also end an answer where the template ends the turn."""
        options = dict(sampling.options)
        if self.tokenizer.chat_template == PLAIN_TEMPLATE:
            given = options.get("stop") or []
            given = [given] if isinstance(given, str) else given
            options["stop"] = list(dict.fromkeys([*given, *PLAIN_STOPS]))
        if self._end not in (None, self.tokenizer.eos_token_id):
            given = options.get("stop_token_ids") or []
            options["stop_token_ids"] = list(dict.fromkeys([*given, self._end]))
        return sampling.model_copy(update={"options": options})


def load_tokenizer(model: str) -> Any:
    """Load a tokenizer from a local folder or the hub, with `PLAIN_TEMPLATE` if it has no template.

    Raises `InputError` for a template that does not show the user's message.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if not _shows_its_message(tokenizer):
        raise InputError(
            f"model.path {model!r}: prompts from its chat template do not contain the question; "
            "correct the template"
        )
    return tokenizer


def _shows_its_message(tokenizer: Any) -> bool:
    """Whether a prompt contains the message. A template that fails does so later, at a prompt."""
    try:
        return _PROBE in _rendered(tokenizer, [{"role": "user", "content": _PROBE}])
    except Exception:  # noqa: BLE001, a template may raise anything
        return True


def prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template_args: Mapping[str, Any]
) -> list[int]:
    """The ids that the model sees before it answers; `template_args` such as `enable_thinking`.

    They begin with one BOS if the tokenizer begins texts with one, whatever the template does. A
    control token that a user typed into a message is treated as text.
    """
    if any(num_control_tokens(tokenizer, message["content"]) for message in messages):
        ids = _ids_of_typed(tokenizer, messages, template_args)
    else:
        rendered = _rendered(tokenizer, messages, add_generation_prompt=True, **template_args)
        ids = target_ids(tokenizer, rendered)
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    rest = list(itertools.dropwhile(lambda token: token == bos, ids))
    begins = len(rest) < len(ids) or tokenizer("")["input_ids"][:1] == [bos]
    return [bos, *rest] if begins else rest


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **template_args: Any) -> str:
    """The text of a chat that the template renders."""
    chat: list[dict[str, Any]] = [dict(message) for message in messages]
    if _wants_parts(tokenizer, str(tokenizer.chat_template)):
        chat = [each | {"content": _parts(each["content"])} for each in chat]
    if isinstance(date := template_args.get(CLOCK), str):
        template_args[CLOCK] = datetime.date.fromisoformat(date).strftime
    return str(tokenizer.apply_chat_template(chat, tokenize=False, **template_args))


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@lru_cache(maxsize=16)
def _wants_parts(tokenizer: Any, template: str) -> bool:
    """Whether a template expects a message as a list of parts and ignores plain text."""
    import jinja2

    shown = []
    for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
        try:
            chat = [{"role": "user", "content": content}]
            shown.append(_PROBE in tokenizer.apply_chat_template(chat, tokenize=False))
        except (TypeError, ValueError, jinja2.TemplateError):
            shown.append(False)
    return shown == [False, True]


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern that finds the tokenizer's special tokens and the marks of thinking in a text."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or is_mark(token.content)}
    names = {*names, *tokenizer.all_special_tokens} - {""}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if names else None


def control_token_ids(tokenizer: Any) -> frozenset[int]:
    """The special tokens of a tokenizer."""
    added = tokenizer.added_tokens_decoder.items()
    special = (number for number, token in added if token.special)
    return frozenset([*special, *tokenizer.all_special_ids])


def num_control_tokens(tokenizer: Any, text: str) -> int:
    """The number of the model's control tokens that a text contains as typed characters."""
    tokens = _control_tokens(tokenizer)
    return len(tokens.findall(text)) if tokens else 0


def _ids_of_typed(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template_args: Mapping[str, Any]
) -> list[int]:
    """The ids of a chat whose messages are tokenized as text, apart from what the template writes.

    A mark that the tokenizer does not declare as special remains a token; this cannot be avoided.
    """
    places = [f"\u2063{number}\u2063" for number in range(len(messages))]
    chat = [{**m, "content": place} for m, place in zip(messages, places, strict=True)]
    rendered = _rendered(tokenizer, chat, add_generation_prompt=True, **template_args)
    ids: list[int] = []
    for piece in re.split(r"(\u2063\d+\u2063)", rendered):
        if piece in places:
            content = messages[places.index(piece)]["content"].strip()
            ids += typed_ids(tokenizer, content)
        else:
            ids += target_ids(tokenizer, piece)
    return ids


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text with its control tokens, without those that the tokenizer would add."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def typed_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text in which special tokens are treated as plain characters."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


# --- thinking that cannot be read ----------------------------------------------------------------


def unread_thinking(tokenizer: Any, template_args: Mapping[str, Any]) -> str | None:
    """How the template marks a model's thinking, where `cluster.thinking` cannot read these marks;
    None if it can, or if the template shows no thinking.

    A message with a known thought and a known answer is rendered, and read as a model's turn. So a
    format is known by what the template does, and not by the name of its model.
    """
    written = _written_turn(tokenizer, template_args)
    if written is not None:
        turn = TurnReader(tokenizer).read(target_ids(tokenizer, written))
        if _THOUGHT not in (turn.thinking or "") or _THOUGHT in (turn.answer or _THOUGHT):
            return _around(written, _THOUGHT)
    return _opened_unread(tokenizer, template_args)


def _written_turn(tokenizer: Any, template_args: Mapping[str, Any]) -> str | None:
    """What the template writes after a question for a message with a thought; None if it leaves
    the thought out in every form in which templates get one."""
    parts = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
    fields = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT)
    for said in ({"content": _ANSWER, **fields}, {"content": parts}):
        asked: list[dict[str, Any]] = [{"role": "user", "content": _PROBE}]
        asked.append({"role": "assistant", **said})
        _, found, written = _tried(tokenizer, asked, template_args).rpartition(_PROBE)
        # A template that expects text may write a list of parts as data.
        if found and _THOUGHT in written and _ANSWER in written and "'type'" not in written:
            return written
    return None


def _opened_unread(tokenizer: Any, template_args: Mapping[str, Any]) -> str | None:
    """The tag that a prompt leaves open although an answer does not begin inside of it; None for
    a tag that `cluster.thinking` reads."""
    asked: list[dict[str, Any]] = [{"role": "user", "content": _PROBE}]
    prompt = _tried(tokenizer, asked, {**template_args, "add_generation_prompt": True})
    tail = prompt.rpartition(_PROBE)[2]
    answered = [*asked, {"role": "assistant", "content": _ANSWER}]
    shown = _tried(tokenizer, answered, template_args).rpartition(_PROBE)[2]
    before, is_shown, _ = shown.partition(_ANSWER)
    for tag in _OPENING_TAG.finditer(tail):
        close = f"{tag['bracket']}/{tag['name']}"
        is_open = close not in tail[tag.end() :] and close in str(tokenizer.chat_template)
        around_answer = is_shown and tag[0] in before and close not in before
        if is_open and not around_answer and not is_mark(tag[0]):
            return tag[0]
    return None


def _tried(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], template_args: Mapping[str, Any]
) -> str:
    """The text of a chat; empty where the template refuses it, in whatever way."""
    try:
        return _rendered(tokenizer, messages, **template_args)
    except Exception:  # noqa: BLE001, a template may raise anything
        return ""


def _around(text: str, part: str) -> str:
    """A part with at most 40 characters before and behind it, on one line."""
    start = text.find(part)
    shown = text[max(0, start - 40) : start + len(part) + 40]
    return " ".join(shown.replace(part, "...").split())


def end_of_turn(tokenizer: Any) -> int | None:
    """The token with which the template ends an assistant's message; otherwise the EOS.

    It may differ from the EOS: Gemma's is `<end_of_turn>`, Llama 3's `<|eot_id|>`. None if the
    tokenizer has neither.
    """
    chat = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _ANSWER}]
    _, answered, tail = _rendered(tokenizer, chat).rpartition(_ANSWER)
    marks = control_token_ids(tokenizer) | {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if not _PLAIN.fullmatch(token.content)
    }
    written = (token for token in target_ids(tokenizer, tail) if token in marks)
    eos: int | None = tokenizer.eos_token_id
    return next(written, eos) if answered else eos


def end_turn(ids: Sequence[int], end: int, others: Sequence[int] = ()) -> list[int]:
    """The ids with exactly one end-of-turn token at the end, in place of any `others` there."""
    ends = {end, *others}
    kept = len(ids)
    while kept and ids[kept - 1] in ends:
        kept -= 1
    return [*ids[:kept], end]
