"""Code and prompts of a user's own, and the examples of docs/EXTENDING.md as they are."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.settings import content_of, laid_over, settings_of
from cluster.store.folder import Folder
from evaluation.grader import grade
from evaluation.question import Question
from pipelines.config import Config, load_config
from pipelines.questions.loading import QuestionSettings, load_questions
from pipelines.selection.filters import ExampleSettings, GradedQuestion, filter_paths, wrong_paths
from pipelines.selection.select_examples import select_step_examples
from pipelines.steps import paths as paths_step
from pipelines.steps.questions import questions_origin
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.guidelines import load_prompts
from tests.conftest import REPOSITORY, sums
from tests.pipelines.test_examples import held_out, stored, training_questions, write_paths
from tests.pipelines.test_filters import NUMBER, path

DOCUMENT = (REPOSITORY / "docs" / "EXTENDING.md").read_text()
_EXAMPLE = re.compile(
    r"^```\w+ (?P<file>\S+)\n(?P<text>.*?)```\n\n```yaml\n(?P<settings>.*?)```$", re.M | re.S
)
EXAMPLES = {example["file"]: example for example in _EXAMPLE.finditer(DOCUMENT)}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config_of(file: str, **others: Any) -> Config:
    """A config with an example of the document, and its file."""
    Path(file).write_text(EXAMPLES[file]["text"])
    tree = {
        "run": "own",
        "model": {"path": "nowhere"},
        "questions": {"datasets": sums("sums", 0, num_train=4, num_dev=0, num_test=2)},
    }
    written = laid_over(laid_over(tree, others), yaml.safe_load(EXAMPLES[file]["settings"]))
    Path("config.yaml").write_text(yaml.safe_dump(written))
    return load_config("config.yaml")


def test_every_example_of_the_document_is_found() -> None:
    assert set(EXAMPLES) == {"brief.py", "no_lists.py", "distances.py", "one_prompt.yaml"}


# --- a strategy -----------------------------------------------------------------------------------


def synthesis_content(config: Config) -> dict[str, Any]:
    return paths_step._synthesis_content(config.synthesis)


def test_own_strategy_sets_what_the_config_does_not() -> None:
    config = config_of("brief.py", synthesis={"samples": 3})
    assert config.synthesis.samples == 3
    assert config.synthesis.stages.of("path").max_tokens == 200
    assert (config.examples.max_per_question, config.examples.draw) == (2, "diversity")
    [first, *_] = Recipe.load(0, config.synthesis).specs(NUMBER)
    assert first.path_id == "0/brief/d/train/1/none/0/0"


def test_own_strategy_is_its_name_and_settings_wherever_its_file_is() -> None:
    config = config_of("brief.py")
    before = synthesis_content(config)
    text = EXAMPLES["brief.py"]["text"]
    Path("folder").mkdir()
    Path("folder/brief.py").write_text(f"# A comment.\n{text}")
    moved = load_config("config.yaml", ["synthesis.strategy=folder/brief.py"])
    assert synthesis_content(moved) == before
    Path("brief.py").write_text(text.replace('"samples": 8', '"samples": 9'))
    assert synthesis_content(load_config("config.yaml")) != before


def test_stored_config_of_an_own_strategy_needs_its_file_no_more() -> None:
    stored = config_of("brief.py").model_dump(mode="json")
    Path("brief.py").unlink()
    assert settings_of(Config, stored, "config.yaml").synthesis.samples == 8


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("absent.py", None, "there is no file absent.py"),
        ("broken.py", "STRATEGY = (", r"broken\.py is not Python .*line 1"),
        ("raises.py", "import no_such_package", "raises.py cannot be run .*no_such_package"),
        ("exits.py", "raise SystemExit(3)", r"exits.py cannot be run \(SystemExit: 3\)"),
        ("empty.py", "", "does not define 'STRATEGY'"),
        ("number.py", "STRATEGY = 5", "is not a strategy"),
        ("star.py", "", "has the name of a built-in strategy; rename"),
    ],
)
def test_file_that_is_no_strategy_is_refused(name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(InputError, match=f"synthesis.strategy: .*{sentence}"):
        load_config("quickstart", [f"synthesis.strategy={name}"])


# --- a filter -------------------------------------------------------------------------------------

LISTED = "\n".join("- a line" for _ in range(5))


def filtered(source: str, *reasonings: str) -> dict[str, str]:
    Path("mine.py").write_text(source)
    settings = ExampleSettings(filters=("mine.py:drop",))  # type: ignore[arg-type]
    paths = [path(number, "4", reasoning=text) for number, text in enumerate(reasonings)]
    return filter_paths(GradedQuestion(NUMBER, paths, settings))[1]


def test_own_filter_drops_with_its_reason() -> None:
    settings = config_of("no_lists.py").examples
    Path("no_lists.py").unlink()
    settings = pickle.loads(pickle.dumps(settings))  # as it goes to a worker without the file
    paths = [path(0, "4", reasoning=LISTED), path(1, "4"), path(2, "5", reasoning=LISTED)]
    graded = GradedQuestion(NUMBER, [*paths, path(3, "5")], settings)
    kept, reasons = filter_paths(graded)
    assert [each.path_id for each in kept] == ["001"]
    assert reasons == {"000": "bulleted", "002": "wrong", "003": "wrong"}
    assert [each.path_id for each in wrong_paths(graded, reasons)] == ["003"]


def test_own_filters_run_in_their_order_and_before_repetition() -> None:
    source = "def drop(graded, paths):\n    return {paths[0].path_id: 'first'}\n"
    assert sorted(filtered(source, "same", "same").values()) == ["first"]


def test_own_filter_is_content_by_its_source_and_neutral_when_unused() -> None:
    config = config_of("no_lists.py")
    content = content_of(config.examples)["filters"]
    assert "filters" not in content_of(ExampleSettings())
    Path("folder").mkdir()
    Path("no_lists.py").rename("folder/no_lists.py")
    moved = ExampleSettings(filters=("folder/no_lists.py:bulleted",))  # type: ignore[arg-type]
    assert content_of(moved)["filters"] == content
    Path("no_lists.py").write_text(EXAMPLES["no_lists.py"]["text"].replace("> 3", "> 2"))
    assert content_of(load_config("config.yaml").examples)["filters"] != content


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def drop(graded, paths):\n    1 / 0\n", "question 'd/train/1', raised ZeroDivisionError"),
        ("def drop(graded, paths):\n    return None\n", "returned 'None'; return a dict"),
        ("def drop(graded, paths):\n    return {'other': 'x'}\n", "return a dict"),
        ("def drop(graded, paths):\n    return {paths[0].path_id: 5}\n", "return a dict"),
    ],
)
def test_own_filter_that_fails_is_a_sentence(source: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"mine.py:drop, .*{sentence}"):
        filtered(source, "one")


def test_own_filter_that_fails_on_a_worker_is_the_same_sentence(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    Path("mine.py").write_text("def drop(graded, paths):\n    raise OSError('no disk')\n")
    settings = ExampleSettings(filters=("mine.py:drop",))  # type: ignore[arg-type]
    Path("mine.py").unlink()
    root, questions = Folder.open(str(tmp_path)), training_questions(1)
    write_paths(root.child("paths"), questions)
    asked = stored(root.child("questions"), questions)
    model = Model("tiny", str(model_folder), str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"^examples\.filters: mine.*OSError: no disk"):
        run_task(
            select_step_examples,
            *(root.child("paths"), asked, held_out(asked), settings, model, {}, None),
        )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("absent.py:drop", "there is no file absent.py"),
        ("mine.py:keep", "does not define 'keep'"),
        ("mine.py", "names no code; write it as folder/file.py:name"),
        ("mine:drop", "names no code"),
        ("mine.py:narrow", r"has other parameters .*define it as \(graded, paths\)"),
        ("mine.py:NUMBER", "is not a function"),
        (".:drop", "names no code"),
        ("folder.py:drop", "cannot be read"),
        ("binary.py:drop", "cannot be read"),
        ("zero.py:drop", "is not Python"),
    ],
)
def test_filter_that_cannot_be_called_is_refused(given: str, sentence: str) -> None:
    Path("mine.py").write_text("NUMBER = 5\ndef drop(a, b): ...\ndef narrow(a): ...\n")
    Path("folder.py").mkdir()
    Path("binary.py").write_bytes(b"\xff\xfe\x00")
    Path("zero.py").write_bytes(b"a = 1\0")
    with pytest.raises(InputError, match=f"examples.filters.0: .*{sentence}"):
        load_config("quickstart", [f"examples.filters=[{given}]"])


# --- a grader -------------------------------------------------------------------------------------


def questions_of(settings: QuestionSettings) -> list[Question]:
    return list(load_questions(settings).questions("train"))


def test_own_grader_travels_with_its_questions_and_is_part_of_them() -> None:
    Path("distances.csv").write_text(
        "id,question,answer,grader_data\na,How far is it?,100,0.1\nb,How far was it?,50,0.1\n"
    )
    others = {"questions": {"datasets": {"distances": {"dev_share": 0, "test_share": 0}}}}
    settings = config_of("distances.py", **others).questions
    origin = questions_origin(settings)
    settings = settings.model_copy(update={"datasets": {"d": settings.datasets["distances"]}})
    first, _ = questions_of(settings)
    Path("distances.py").write_text(EXAMPLES["distances.py"]["text"] + "# edited\n")
    edited, _ = questions_of(settings)
    Path("distances.py").unlink()  # as on another node
    assert grade(r"\boxed{95}", first, read_last=False).verdict == "correct"
    assert grade(r"\boxed{85}", first, read_last=False).verdict == "wrong"
    assert grade(r"\boxed{far}", first, read_last=False).verdict == "wrong"
    assert grade("Hm", first, read_last=False).verdict == "no_answer"
    assert grade("Hm", first, read_last=False, finished=False).verdict == "truncated"
    assert edited.fingerprint != first.fingerprint
    assert Question.from_row(edited.to_row()) == edited
    Path("distances.py").write_text("def grade(text, question, *, read_last, finished): ...\n")
    assert questions_origin(config_of("distances.py", **others).questions) == origin
    Path("distances.py").write_text(EXAMPLES["distances.py"]["text"] + "# edited\n")
    assert questions_origin(load_config("config.yaml").questions) != origin


# --- prompts --------------------------------------------------------------------------------------


def test_one_prompt_replaces_one() -> None:
    prompts = Recipe.load(0, config_of("one_prompt.yaml").synthesis).prompts
    ours = load_prompts()
    assert prompts["adapt"].startswith("Rewrite the advice")
    assert {name for name in ours.texts if prompts[name] != ours[name]} == {"adapt"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected prompts as `name: text`; the names are adapt, "),
        ("[]", "expected prompts"),
        ("adpat: hm", "there is no prompt 'adpat'; the names are adapt, structure"),
        ("5: hm", "there is no prompt 5"),
        ("adapt: 5", "the prompt adapt is not text"),
        ("adapt: '{question}'", "the prompt adapt lacks {guideline}"),
    ],
)
def test_file_that_holds_no_prompt_is_refused(text: str, sentence: str) -> None:
    Path("prompts.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence)):
        load_prompts(Path("prompts.yaml"))
