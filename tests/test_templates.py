"""Imitated chat templates of current model families, on a byte tokenizer with special tokens.

Each family goes through the prompts of synthesis, training and evaluation, with a model that closes
its thinking and one that never does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.engine import (
    Beginning,
    Completion,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.inference.job import Slots
from cluster.models.chat_template import (
    CLOCK,
    ChatModel,
    Prompt,
    end_of_turn,
    load_tokenizer,
    num_control_tokens,
    prompt_ids,
    target_ids,
    unread_thinking,
)
from cluster.thinking import TurnReader
from evaluation.predictions import EvaluationSettings, PredictAnswer, Prediction
from evaluation.prompt import answer_messages
from evaluation.question import Question
from pipelines.selection.filters import ExampleSettings
from pipelines.selection.select_examples import ExampleSelector, Selection, select_examples
from pipelines.synthesis.chain import Recipe, SynthesisSettings, run_chain
from pipelines.synthesis.guidelines import load_prompts
from pipelines.synthesis.handler import SynthesizePaths
from pipelines.synthesis.judge import read_judgement
from tests.cluster.test_chat import make_tokenizer

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")
TEMPLATES = Path(__file__).parent / "templates"
ANSWER = "It is \\boxed{4}"
DATED = {CLOCK: "2026-02-03"}


@dataclass(frozen=True)
class Family:
    """A template with the tokens that its tokenizer has."""

    template: str | None
    eos: str
    end: str
    """Of a turn, as the template writes it."""
    special: tuple[str, ...] = ()
    bos: str | None = None
    begin: str = "<think>\n"
    """As the model writes it; the prompt may have written it already."""
    close: str = "\n</think>\n\n"
    marks: tuple[str, ...] = ()
    """Tokens that are not special."""
    opened: bool = False
    args: tuple[tuple[str, str], ...] = ()

    def thinks(self, thought: str) -> str:
        """What the model writes as its thinking."""
        return f"{'' if self.opened else self.begin}{thought}{self.close}"


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>")
_ANALYSIS = "<|channel|>analysis<|message|>"
_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
_THINK = ("<think>", "</think>")
FAMILIES = {
    "llama3": Family("llama3", "<|end_of_text|>", "<|eot_id|>", _HEADERS, "<|begin_of_text|>"),
    "llama3_dated": Family(
        "llama3_dated",
        "<|eot_id|>",
        "<|eot_id|>",
        _HEADERS,
        "<|begin_of_text|>",
        args=tuple(DATED.items()),
    ),
    "mistral_v3": Family("mistral_v3", "</s>", "</s>", ("[INST]", "[/INST]"), "<s>"),
    "mistral_think": Family(
        "mistral_think",
        "</s>",
        "</s>",
        ("[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        "<s>",
        begin="[THINK]",
        close="[/THINK]",
    ),
    "gemma": Family("gemma", "<eos>", "<end_of_turn>", _GEMMA, "<bos>"),
    "gemma3_reasoning_tags": Family(
        "gemma3",
        "<eos>",
        "<end_of_turn>",
        _GEMMA,
        "<bos>",
        begin="<reasoning>\n",
        close="\n</reasoning>\n",
    ),
    "gemma4": Family(
        "gemma4",
        "<eos>",
        "<turn|>",
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
        "<bos>",
        begin="<|channel>thought\n",
        close="<channel|>",
        args=(("enable_thinking", "yes"),),
    ),
    "qwen3": Family("qwen3", "<|im_end|>", "<|im_end|>", ("<|im_start|>",), marks=_THINK),
    "r1": Family(
        "r1",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>",
        marks=_THINK,
        opened=True,
    ),
    "r1_special_tags": Family(
        "r1",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", *_THINK),
        "<｜begin▁of▁sentence｜>",
        opened=True,
    ),
    "gpt_oss": Family(
        "gpt_oss",
        "<|return|>",
        "<|return|>",
        _HARMONY,
        begin=_ANALYSIS,
        close=_FINAL,
        args=tuple(DATED.items()),
    ),
    "parts_only": Family(
        "parts_only",
        "<|endoftext|>",
        "<|end|>",
        ("<|end|>", "<|user|>", "<|assistant|>"),
        "<s>",
        marks=_THINK,
    ),
    "without_template": Family(None, "</s>", "</s>", (), "<s>"),
}


def write_tokenizer(family: Family, folder: Path) -> Any:
    """The family's tokenizer, stored and loaded again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([family.eos, *family.special, *filter(None, [family.bos])])
    tokenizer.add_tokens(list(family.marks))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos
    )
    if family.template:
        fast.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text()
    fast.save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tokenizer(family, tmp_path_factory.mktemp("tokenizer"))


class Says:
    """An engine that samples one text, read as vLLM's is."""

    def __init__(self, tokenizer: Any, said: str, finish_reason: str = "stop") -> None:
        self.chat_model, self.prompts = ChatModel(tokenizer), list[str]()
        self.seen: list[Prompt] = []
        self._said, self._reason = said, finish_reason

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        self.prompts.append(messages[-1]["content"])
        prompt = self.chat_model.prompt(messages, sampling.template_args)
        self.seen.append(prompt)
        tokenizer = self.chat_model.tokenizer
        ids = target_ids(tokenizer, self._said)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        sampled = Completion(text, ids, self._reason, len(prompt.token_ids))
        return [self.chat_model.read(sampled, prompt)] * n

    def shutdown(self) -> None: ...


def synthesis(family: Family, **settings: Any) -> Recipe:
    """One path a question, with the family's template arguments in each stage."""
    args = {"template_args": dict(family.args)}
    tree = {"stages": dict.fromkeys(("adapt", "structure", "path", "judge"), args)}
    if "chain" not in settings:
        tree |= {"guidelines_per_question": 1}  # type: ignore[dict-item]
    return Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(tree | settings)))


def paths_row(family: Family, engine: Says, **settings: Any) -> dict[str, Any]:
    handler = SynthesizePaths(synthesis(family, **settings), ("number",))
    return asyncio.run(handler(engine, QUESTION.to_row(), Slots(4), None))


def predicted(family: Family, engine: Says) -> dict[str, Any]:
    handler = PredictAnswer(EvaluationSettings(template_args=dict(family.args)).sampling)
    row = QUESTION.to_row() | {"question_fingerprint": QUESTION.fingerprint}
    return asyncio.run(handler(engine, row, Slots(1), None))


def selected(family: Family, tokenizer: Any, *rows: dict[str, Any], **settings: Any) -> Selection:
    settings = {"thinking": "keep" if family.opened else "strip"} | settings
    selector = ExampleSelector(ExampleSettings(**settings), tokenizer, dict(family.args))
    return select_examples(rows, selector)


def test_prompts_of_training_and_evaluation_are_one(family: Family, tokenizer: Any) -> None:
    row = paths_row(family, Says(tokenizer, f"{family.thinks('hm')}{ANSWER}{family.end}"))
    [example] = selected(family, tokenizer, row).examples
    prompt = ChatModel(tokenizer).prompt(answer_messages(QUESTION), dict(family.args))
    assert example["prompt_token_ids"] == prompt.token_ids
    shown = tokenizer.decode(prompt.token_ids)
    assert QUESTION.text in shown
    assert bool(prompt.opened) == family.opened
    assert shown.count(family.bos or "no BOS") == int(family.bos is not None)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(family.end)


def test_every_prompt_of_a_run_holds_its_message_and_begins_once(
    family: Family, tokenizer: Any
) -> None:
    """All stages, the judge, and the second pass with a hint in each stage."""
    engine = Says(tokenizer, f"{family.thinks('hm')}It is \\boxed{{5}}{family.end}")
    hints = ["adapt", "structure", "path"]
    row = paths_row(family, engine, judge="all", hint_stages=hints)
    assert [path["pass"] for path in row["paths"]] == [0, 1]
    hint = load_prompts()["hint"].format(answer=QUESTION.answer)
    assert sum(message.endswith(hint) for message in engine.prompts) == len(hints)
    assert len(engine.prompts) == 2 * (len(hints) + 1)
    for message, prompt in zip(engine.prompts, engine.seen, strict=True):
        shown = tokenizer.decode(prompt.token_ids)
        assert message.strip() in shown
        assert shown.count(family.bos or "no BOS") == int(family.bos is not None)
        assert bool(prompt.opened) == family.opened


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_thought_that_never_ends_is_no_answer_anywhere(
    reason: str, family: Family, tokenizer: Any
) -> None:
    thought = "" if family.opened else family.begin
    cut = f"{thought}It may be \\boxed{{4}}, or is the answer yes? So 4"
    engine = Says(tokenizer, cut, reason)
    row = paths_row(family, engine, chain=["path"], judge="all")
    [path] = row["paths"]
    assert (path["verdict"], path["predicted"], path["judged"]) == ("truncated", None, None)
    assert (row["num_accepted"], row["num_truncated"], path["reasoning"]) == (0, 1, "")
    assert len(engine.prompts) == 1, "there is nothing to judge"
    for verdict in ("ground_truth", "majority", "unfiltered"):
        selection = selected(family, tokenizer, row, verdict=verdict)
        kept = (selection.examples, selection.pairs, selection.unpaired)
        assert not any(kept)
        assert [dropped["reason"] for dropped in selection.dropped] == ["truncated"]
    answered = predicted(family, Says(tokenizer, cut, reason))
    assert (answered["verdict"], answered["num_truncated"]) == ("truncated", 1)
    assert Prediction.from_row(answered).graded().verdict == "truncated"


def test_thought_that_never_ends_goes_into_no_prompt(family: Family, tokenizer: Any) -> None:
    engine = Says(tokenizer, f"{'' if family.opened else family.begin}a secret")
    recipe = synthesis(family)
    [path] = asyncio.run(run_chain(engine, recipe, QUESTION, recipe.specs(QUESTION)))
    assert len(engine.prompts) == 1
    assert not path.texts
    assert path.graded(QUESTION, ("number",)).verdict == "truncated"
    [said] = asyncio.run(
        engine.chat(answer_messages(QUESTION), recipe.settings.stages.judge, seed=0)
    )
    assert read_judgement(said, QUESTION) is None


@pytest.mark.parametrize("thinking", ["strip", "keep"])
@pytest.mark.parametrize("answer", [ANSWER, "It is 4"])
def test_target_is_its_message_and_one_end_of_turn(
    thinking: str, answer: str, family: Family, tokenizer: Any
) -> None:
    if family.opened and thinking == "strip":
        return  # is refused
    end = end_of_turn(tokenizer)
    for ending in ("", family.end, family.end + family.eos, family.eos):
        said = f"{family.thinks('hm')}{answer}{ending}"
        row = paths_row(family, Says(tokenizer, said))
        selection = selected(family, tokenizer, row, thinking=thinking)
        [example] = selection.examples
        message, target = example["messages"][-1]["content"], example["target_token_ids"]
        assert target[-1] == end
        assert tokenizer.decode(target).count(family.end) == 1
        learned = tokenizer.decode(target[:-1])
        begun = learned if not family.opened else f"{family.begin}{learned}"
        if family.template == "gpt_oss" and thinking == "strip":
            begun = begun.removeprefix("<|channel|>final<|message|>")
        assert begun == message
        assert ("hm" in message) == (thinking == "keep")
        assert "\\boxed{4}" in message


def test_answers_end_where_the_template_ends_a_turn(family: Family, tokenizer: Any) -> None:
    given = SamplingSettings(options={"stop": ["X"], "stop_token_ids": [3]})
    options = ChatModel(tokenizer).with_stops(given).options
    end = [] if family.end == family.eos else [end_of_turn(tokenizer)]
    assert options["stop_token_ids"] == [3, *end]
    assert options["stop"] == ["X", *([] if family.template else ["\nUser:"])]


def test_ids_behind_a_stop_string_are_not_learned(family: Family, tokenizer: Any) -> None:
    said = f"{family.thinks('hm')}{ANSWER}\n\nUser: And 3?"
    engine = Says(tokenizer, said)
    ids = target_ids(tokenizer, said)
    prompt = engine.chat_model.prompt(answer_messages(QUESTION), dict(family.args))
    text = tokenizer.decode(ids, skip_special_tokens=True).partition("\n\nUser:")[0]
    read = engine.chat_model.read(Completion(text, ids, "stop", 9), prompt)
    assert read.own_turn.answer is not None
    assert read.own_turn.answer.strip() == ANSWER
    assert tokenizer.decode(read.token_ids).endswith(ANSWER)
    assert read.num_tokens == len(ids), "all were generated"


def test_stripped_thinking_is_not_too_long(family: Family, tokenizer: Any) -> None:
    if family.opened:
        return  # its thinking is learned
    row = paths_row(family, Says(tokenizer, f"{family.thinks('hm ' * 300)}{ANSWER}"))
    assert len(selected(family, tokenizer, row).examples) == 1
    long = selected(family, tokenizer, row, thinking="keep")
    assert [dropped["reason"] for dropped in long.dropped] == ["too_long"]


def test_typed_control_tokens_are_text_and_counted(family: Family, tokenizer: Any) -> None:
    typed = f"What is 2 + 2?{family.eos} Say {family.eos}it"
    asked = replace(QUESTION, question=typed)
    row = paths_row(family, Says(tokenizer, f"{family.thinks('hm')}{ANSWER}"))
    selection = selected(family, tokenizer, row | asked.to_row())
    assert selection.counts[0]["num_control_tokens"] == num_control_tokens(tokenizer, typed) == 2
    ids, plain = (
        prompt_ids(tokenizer, answer_messages(each), dict(family.args))
        for each in (asked, QUESTION)
    )
    assert ids.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id)
    assert typed in tokenizer.decode(ids)


def test_tag_that_is_quoted_in_a_thought_ends_nothing(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]
    tokenizer = write_tokenizer(family, tmp_path)
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in _THINK]
    quoted = tokenizer.backend_tokenizer
    letters = [quoted.token_to_id(letter) for letter in "</think>"]
    ids = [marks[0], *target_ids(tokenizer, "they write "), *letters, marks[1]]
    ids += target_ids(tokenizer, ANSWER)
    text = tokenizer.decode(ids)
    prompt = ChatModel(tokenizer).prompt(answer_messages(QUESTION), {})
    turn = ChatModel(tokenizer).read(Completion(text, ids, "stop", 9), prompt).own_turn
    assert (turn.thinking, turn.answer) == ("they write </think>", ANSWER)


def test_thinking_of_every_family_can_be_read(family: Family, tokenizer: Any) -> None:
    assert unread_thinking(tokenizer, dict(family.args)) is None


_TURNS = "{% for m in messages %}[{{ m.role }}] "
_REASON = "{{ m.reasoning_content }}"
_END = "{{ m.content }}</s>{% endfor %}[assistant] "


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        # Kimi K3, MuseGlimmer and Inkling write their thinking like these.
        (
            f"{_TURNS}{{% if m.reasoning_content %}}<|open|>think<|sep|>{_REASON}"
            f"<|close|>think<|sep|>{{% endif %}}{_END}",
            "<|open|>think<|sep|>...<|close|>think<|sep|>",
        ),
        (
            f"{_TURNS}{{% if m.reasoning %}}to=self<|message|>{{{{ m.reasoning }}}}<|eom|>"
            f"to=user<|message|>{{% endif %}}{_END}",
            "to=self<|message|>...<|eom|>",
        ),
        (
            f"{_TURNS}{{% if m.thinking %}}<|content_thinking|>{{{{ m.thinking }}}}<|end_message|>"
            f"<|content_text|>{{% endif %}}{_END}",
            "<|content_thinking|>...<|end_message|><|content_text|>",
        ),
        (f"{_TURNS}{{{{ m.thinking }}}} {_END}", "..."),
        # Only opened by the prompt
        (f"{{# </ponder> #}}{_TURNS}{_END}<ponder>\n", "<ponder>"),
        (f"{{# <|/muse|> #}}{_TURNS}{_END}<|muse|>", "<|muse|>"),
        (f"{{# [/MUSE] #}}{_TURNS}{_END}[MUSE]", "[MUSE]"),
    ],
)
def test_thinking_in_a_form_that_is_not_known_is_found(
    template: str, marks: str, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path, template, adds_bos=False)
    assert marks in (unread_thinking(tokenizer, {}) or "")


@pytest.mark.parametrize(
    "template",
    [
        f"{_TURNS}{_END}",
        f"{_TURNS}{_END}<think>\n",
        f"{_TURNS}{_END}<think>\n\n</think>\n",
        f"{_TURNS}{{% if m.reasoning_content %}}<think>{_REASON}</think>{{% endif %}}{_END}",
        # A tag around the whole turn
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
        "{# </assistant> #}",
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}",
    ],
)
def test_template_without_thinking_or_with_known_marks_is_taken(
    template: str, tmp_path: Path
) -> None:
    assert unread_thinking(make_tokenizer(tmp_path, template, adds_bos=False), {}) is None


@pytest.mark.parametrize("name", ["llama3_dated", "gpt_oss"])
def test_date_is_the_one_of_the_run(name: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(FAMILIES[name], tmp_path)
    shown = tokenizer.decode(prompt_ids(tokenizer, answer_messages(QUESTION), DATED))
    assert ("03 Feb 2026" if name == "llama3_dated" else "2026-02-03") in shown


def test_template_that_drops_the_question_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    write_tokenizer(FAMILIES["qwen3"], folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.text }}{% endfor %}")
    with pytest.raises(InputError, match="do not contain the question"):
        load_tokenizer(str(folder))


# --- continuing an answer ----------------------------------------------------------------------


def begun(
    tokenizer: Any, family: Family, said: str | None, *, limit: int = 4000
) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of what an engine continues behind ` So:`."""
    chat_model = ChatModel(tokenizer)
    prompt = chat_model.prompt(answer_messages(QUESTION), dict(family.args))
    answered = None
    if said is not None:
        ids = target_ids(tokenizer, said)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        answered = chat_model.read(Completion(text, ids, "stop", len(prompt.token_ids)), prompt)
    ids = chat_model.begun_ids(prompt, Beginning(answered, " So:"), limit)
    assert ids[: len(prompt.token_ids)] == prompt.token_ids
    return prompt.token_ids, ids[len(prompt.token_ids) :]


def test_answer_is_continued_by_its_ids_without_its_end(family: Family, tokenizer: Any) -> None:
    said = f"{family.thinks('hm')}{ANSWER}"
    for ending in ("", family.end, family.eos, family.end + family.eos):
        _, ids = begun(tokenizer, family, said + ending)
        assert ids == [*target_ids(tokenizer, said), *target_ids(tokenizer, " So:")]


def test_open_thought_is_closed_before_the_cue(family: Family, tokenizer: Any) -> None:
    thought = f"{'' if family.opened else family.begin}hm {ANSWER}"
    _, ids = begun(tokenizer, family, thought)
    assert ids[: len(target_ids(tokenizer, thought))] == target_ids(tokenizer, thought)
    opened = ChatModel(tokenizer).prompt(answer_messages(QUESTION), dict(family.args)).opened
    assert TurnReader(tokenizer).read([*ids, *target_ids(tokenizer, "4")], opened).answer in (
        " So:4",
        "\n So:4",
        "\n\n So:4",
    )


def test_cue_without_the_answer_is_an_answer_without_thinking(
    family: Family, tokenizer: Any
) -> None:
    _, ids = begun(tokenizer, family, None)
    opened = ChatModel(tokenizer).prompt(answer_messages(QUESTION), dict(family.args)).opened
    turn = TurnReader(tokenizer).read(ids, opened)
    assert (turn.answer or "").strip() == "So:"
    assert not turn.thinking


def test_end_of_an_answer_that_fills_the_context_is_left_out(
    family: Family, tokenizer: Any
) -> None:
    said = f"{family.thinks('hm ' * 50)}{ANSWER}"
    prompt, whole = begun(tokenizer, family, said)
    limit = len(prompt) + len(whole) - 40
    _, ids = begun(tokenizer, family, said, limit=limit)
    assert len(prompt) + len(ids) <= limit
    opened = ChatModel(tokenizer).prompt(answer_messages(QUESTION), dict(family.args)).opened
    turn = TurnReader(tokenizer).read(ids, opened)
    assert (turn.answer or "").endswith(" So:")
    with pytest.raises(PromptTooLongError, match="the prompt and the cue"):
        begun(tokenizer, family, said, limit=len(prompt))


def test_option_is_weighed_where_it_is_one_token(family: Family, tokenizer: Any) -> None:
    chat_model = ChatModel(tokenizer)
    letters = chat_model.option_ids(Beginning(None, " So:", ("A", "B", "C")))
    assert tokenizer.convert_ids_to_tokens(letters) == ["A", "B", "C"]
    assert chat_model.option_ids(Beginning(None, " So:", ("A", "BB"))) == []
    assert chat_model.option_ids(Beginning(None, " So:", ("A", "A"))) == []
