r"""What a model said in its own turn, outside its thinking.

    own_answer("<think>ice? \\boxed{A}</think>\\boxed{B}<|im_end|>")  ->  "\\boxed{B}"

Known are the tags of today's families (`<think>`, `<reasoning>`, `[THINK]` and others), the
channels of the harmony format, of which only `final` is the answer, and the marks that end a turn:
what a model writes behind one belongs to a turn that it made up.
"""

from __future__ import annotations

import re

_NAMES = r"think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|seed:think"
_THINK_TAG = re.compile(
    rf"<(?P<a>/?)(?i:{_NAMES})>|\[(?P<b>/?)THINK\]|◁(?P<c>/?)think▷"
    r"|<\|(?:begin|(?P<d>end))_of_thought\|>|<\|(?:START|(?P<e>END))_THINKING\|>"
)
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(?P<name>[A-Za-z]+)[^<]*<\|message\|>(?P<said>(?:[^<]|<(?!\|))*)"
)
# The same format after its special tokens were dropped from the text.
_BARE_CHANNELS = re.compile(r"analysis(?s:.*)assistantfinal")
_OPENING = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>(?:assistant)?|<\|assistant\|>"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|<｜Assistant｜>)\s*)+"
)
_TURN = re.compile(
    r"<\|(?:im_(?:end|start)|eot_id|eom_id|end|end_of_text|endoftext|end_of_turn|return|start"
    r"|start_header_id|user|assistant|system)\|>|</s>|<eos>|<(?:end|start)_of_turn>"
    r"|<｜(?:end▁of▁sentence|User|Assistant)｜>|\[/?INST\]"
)


def own_answer(text: str, *, opened: bool = False) -> str | None:
    """The text outside thinking, up to the end of the turn; None where thinking never ends.

    `opened` says that the prompt has begun the thinking: then everything up to its end belongs to
    it. A closing tag without an opening one ends a thought that was begun there in any case.
    """
    marked = any(mark in text for mark in ">]▷") or text.startswith("analysis")
    if not (opened or marked):
        return text
    if "<|channel|>" in text:
        return _final_channel(text)
    bare = _BARE_CHANNELS.match(text)
    if bare:
        return text[bare.end() :]
    visible = _outside_thinking(text, opened=opened)
    return None if visible is None else _own_turn(visible)


def _final_channel(text: str) -> str | None:
    said = [message["said"] for message in _CHANNEL.finditer(text) if message["name"] == "final"]
    return said[-1] if said else None


def _outside_thinking(text: str, *, opened: bool) -> str | None:
    kept: list[str] = []
    start, inside = 0, opened
    for tag in _THINK_TAG.finditer(text):
        closing = any(tag.groups())
        if not inside and not closing:
            kept.append(text[start : tag.start()])
        elif not inside:
            kept.clear()
        if closing:
            start = tag.end()
        inside = not closing
    return None if inside else "".join([*kept, text[start:]])


def _own_turn(text: str) -> str:
    opening = _OPENING.match(text)
    start = opening.end() if opening else 0
    end = _TURN.search(text, start)
    return text[start : end.start()] if end else text[start:]
