"""The prompt of models whose tokenizer has a BOS, and of those that have no template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.inference.engine import Completion
from cluster.models.chat_template import (
    PLAIN_TEMPLATE,
    ChatModel,
    end_of_turn,
    end_turn,
    load_tokenizer,
    prompt_ids,
)
from cluster.thinking import TurnReader

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


@pytest.mark.parametrize(
    ("added", "tail", "end"),
    [
        ("\n\n", "\n\n", "</s>"),  # as in Gemma's tokenizer, which has lines as added tokens
        ("User", "\n\nUser", "</s>"),
        ("<|end|>", "<|end|>\n", "<|end|>"),  # a mark that is not declared as special
    ],
)
def test_text_that_is_an_added_token_ends_no_turn(
    added: str, tail: str, end: str, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path, None, adds_bos=False)
    tokenizer.add_tokens([added])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + tail + "{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_end_of_turn_is_there_once_at_the_end() -> None:
    assert end_turn([5, 6], EOS) == end_turn([5, 6, EOS], EOS) == [5, 6, EOS]
    assert end_turn([], EOS) == [EOS]


# --- what a model wrote --------------------------------------------------------------------------


def test_completion_of_a_server_that_tells_no_ids_is_read_by_its_text(tmp_path: Path) -> None:
    chat = ChatModel(make_tokenizer(tmp_path, TURNS, adds_bos=False))
    said = Completion("<think>2 and 2</think>4", [], "stop", 9)
    read = chat.read(said, chat.prompt(MESSAGES, {}))
    assert (read.own_turn.thinking, read.own_turn.answer) == ("2 and 2", "4")
    assert read.token_ids == []


def test_thinking_that_a_template_opens_without_showing_the_question_is_known(
    tmp_path: Path,
) -> None:
    """The template may write the question in another form, such as with other spaces."""
    tokenizer = make_tokenizer(tmp_path, TURNS, adds_bos=False)
    prompt = tokenizer("[user] 2+2?</s>[assistant] <think>\n")["input_ids"]
    assert TurnReader(tokenizer).opened(prompt, "2 + 2?") == "<think>\n"
    plain = tokenizer("[user] 2+2?</s>[assistant] ")["input_ids"]
    assert TurnReader(tokenizer).opened(plain, "2 + 2?") == ""


def test_ids_of_a_text_that_shows_its_special_tokens_are_all_kept(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, TURNS, adds_bos=False)
    ids = tokenizer("</s>four and more", add_special_tokens=False)["input_ids"]
    assert TurnReader(tokenizer).ids_of_text(ids, "</s>four") == ids


def test_ids_of_a_text_that_ends_within_a_character_of_several_tokens_are_those_of_the_text(
    tmp_path: Path,
) -> None:
    """With tokens of bytes, each byte of a character that is not complete is shown as one."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    bytes_only = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<0x00>"))
    bytes_only.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only)
    ids = [*"\N{BAR CHART}\N{BAR CHART} END".encode()]
    wanted = "\N{BAR CHART}\N{BAR CHART}"
    assert tokenizer.decode(TurnReader(tokenizer).ids_of_text(ids, wanted)) == wanted
