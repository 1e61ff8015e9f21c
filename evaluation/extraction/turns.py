r"""The part of a model's turn that is outside its thinking.

    own_answer("<think>ice? \\boxed{A}</think>\\boxed{B}<|im_end|>")  ->  "\\boxed{B}"

The known formats are the tags of current families (`<think>`, `<reasoning>`, `[THINK]` and others),
the channels of the harmony format, of which only `final` is the answer, and the marks that end a
turn: whatever a model writes after one belongs to a turn that it invented.
"""

from __future__ import annotations

import re

from cluster.thinking import read_turn

_OPENING = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>(?:assistant)?|<\|assistant\|>"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|<\|turn>model|<｜Assistant｜>)\s*)+"
)
_TURN = re.compile(
    r"<\|(?:im_(?:end|start)|eot_id|eom_id|end|end_of_text|endoftext|end_of_turn|return|start"
    r"|start_header_id|user|assistant|system)\|>|</s>|<eos>|<(?:end|start)_of_turn>|<\|turn>|<turn\|>"
    r"|<｜(?:end▁of▁sentence|User|Assistant)｜>|\[/?INST\]"
)


def own_answer(text: str, *, opened: bool = False) -> str | None:
    """The text outside thinking, up to the end of the turn; None if the thinking never ends.

    `opened` means that the prompt began the thinking, so everything up to its end belongs to it. A
    closing tag without an opening one always ends a thought that began at the start.
    """
    marked = any(mark in text for mark in ">]▷") or text.startswith("analysis")
    if not (opened or marked):
        return text
    visible = read_turn(text, "<think>" if opened else "").answer
    return None if visible is None else _own_turn(visible)


def _own_turn(text: str) -> str:
    opening = _OPENING.match(text)
    start = opening.end() if opening else 0
    end = _TURN.search(text, start)
    return text[start : end.start()] if end else text[start:]
