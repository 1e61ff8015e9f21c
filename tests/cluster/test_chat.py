"""The prompt of models whose tokenizer has a BOS, and of those that have no template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.models.chat_template import (
    PLAIN_TEMPLATE,
    ChatModel,
    end_turn,
    load_tokenizer,
    prompt_ids,
)

MESSAGES = [{"role": "user", "content": "2 + 2?"}]
BOS, EOS = 256, 257


def make_tokenizer(folder: Path, template: str | None, *, adds_bos: bool) -> Any:
    """A tokenizer of bytes with BOS and EOS, stored and loaded again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return load_tokenizer(str(folder))


TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}[assistant] "


@pytest.mark.parametrize(
    ("template", "adds_bos", "has_bos"),
    [
        ("{{ bos_token }}" + TURNS, True, True),
        ("{{ bos_token }}" + TURNS, False, True),
        ("{{ bos_token }}{{ bos_token }}" + TURNS, True, True),
        (TURNS, True, True),
        (TURNS, False, False),
        (None, True, True),
    ],
)
def test_prompt_begins_with_one_bos_where_the_model_has_one(
    template: str | None, adds_bos: bool, has_bos: bool, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path, template, adds_bos=adds_bos)
    ids = prompt_ids(tokenizer, MESSAGES, {})
    assert ids.count(BOS) == int(has_bos)
    assert ids[0] == BOS or not has_bos
    assert "2 + 2?" in tokenizer.decode(ids)


def test_prompt_of_a_model_without_a_template_is_plain(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, None, adds_bos=False)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    text = tokenizer.decode(prompt_ids(tokenizer, MESSAGES, {}))
    assert text == "<s>User: 2 + 2?\n\nAssistant:"


def test_prompt_that_opens_the_thinking_is_known(tmp_path: Path) -> None:
    for ending, is_open in (("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)):
        tokenizer = make_tokenizer(tmp_path, TURNS + ending, adds_bos=False)
        assert bool(ChatModel(tokenizer).prompt(MESSAGES, {}).opened) == is_open


def test_end_of_turn_stands_once_at_the_end() -> None:
    assert end_turn([5, 6], EOS) == end_turn([5, 6, EOS], EOS) == [5, 6, EOS]
    assert end_turn([], EOS) == [EOS]
