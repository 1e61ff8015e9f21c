"""From chat messages to token ids and back: the one place where a chat template is applied.

Training, synthesis and evaluation all take their prompt ids from `prompt_ids`, so they cannot
drift apart, and no text that already holds a BOS is tokenised a second time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

# For base models, whose tokenizer has no chat template: plain text, one role a paragraph.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}{{ message.role.capitalize() }}: {{ message.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a local folder or hub name, with `PLAIN_TEMPLATE` where it has no own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template_args: Mapping[str, Any]
) -> list[int]:
    """The ids the model sees before it answers; `template_args` such as `enable_thinking`.

    They begin with one BOS where the tokenizer begins a text with one, whatever the template does.
    """
    ids: list[int] = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **template_args,
    )
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    rest = list(itertools.dropwhile(lambda token: token == bos, ids))
    begins = len(rest) < len(ids) or tokenizer("")["input_ids"][:1] == [bos]
    return [bos, *rest] if begins else rest


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of an answer written by us, without the end-of-turn token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def opens_thinking(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with `<think>`, so that the answer begins inside the thinking."""
    return str(tokenizer.decode(prompt[-16:])).rstrip().endswith("<think>")


def end_turn(ids: Sequence[int], eos_token_id: int) -> list[int]:
    """The ids with the end-of-turn token once at their end."""
    return [*ids] if ids and ids[-1] == eos_token_id else [*ids, eos_token_id]
