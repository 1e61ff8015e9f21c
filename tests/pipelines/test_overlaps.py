"""Which training questions overlap with a held-out one, and what happens to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from pipelines.questions import overlaps
from pipelines.questions.loading import QuestionSet, QuestionSettings, SplitCounts, load_questions
from pipelines.questions.overlaps import RULES, HeldOutRuns, Words, find_overlaps, word_runs
from tests.conftest import REPOSITORY

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS, MASKED = RULES

CAR_WHEELS = (
    "In a car parking lot, {} observed that there are {} car wheels. How many cars are there?"
)
LONG = "a farmer keeps hens and each of his hens lays two eggs on every day of the week"


def pairs(rule: Any, held_out: Sequence[str], train: Sequence[str]) -> list[tuple[int, int]]:
    """The places of the training and the held-out question of each overlap."""
    [found] = find_overlaps([HeldOutRuns.of(rule, [held_out])], [train])
    return list(zip(found.places.tolist(), found.held_out.tolist(), strict=True))


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    words = LONG.split()
    shared = " ".join(words[:13])
    assert pairs(WORDS, [LONG], [f"Once more, {shared.upper()}; how many?"]) == [(0, 0)]
    assert pairs(WORDS, [LONG], [f"Once more, {' '.join(words[:12])}; how many?"]) == []


def test_other_numbers_and_names_are_an_overlap_once_numbers_are_masked() -> None:
    held_out = ["What is the capital of Peru, please?", CAR_WHEELS.format("Aria", 68)]
    near = CAR_WHEELS.format("Penelope", "4,800")
    assert pairs(MASKED, held_out, [near]) == [(0, 1)]
    assert pairs(WORDS, held_out, [near]) == []


def test_a_run_that_is_chance_is_no_overlap() -> None:
    held_out = (
        "Jack has 45 dollars and 36 euros. If each euro is worth 2 dollars, how much money does he "
        "have total in dollars?"
    )
    near = (
        "Tom sells 9 old chairs and mends 3 tables for a neighbour, who pays for both of them in "
        "coins. Each coin is worth 2 dollars, how much money does he bring home when the day ends "
        "and his cart is empty again?"
    )
    assert len(word_runs(Words.of([near]), MASKED).hashes) > 10
    assert pairs(MASKED, [held_out], [near]) == []


def test_formulas_and_short_questions_are_not_alike_by_their_masked_numbers() -> None:
    sums = ["3 + 4 - 2 + 8 - 1 + 6 =", "What is 3 + 4?", "7 * 6 + 2 - 5 + 3 * 1 is", ""]
    others = ["5 + 1 - 7 + 2 - 9 + 4 =", "What is 8 + 1?", "8 * 2 + 5 - 9 + 6 * 7 is", ""]
    assert pairs(MASKED, sums, others) == pairs(WORDS, sums, others) == []


@pytest.mark.parametrize("num_held_out", [2, 12])
def test_words_that_most_questions_share_are_a_template(num_held_out: int) -> None:
    rule = (
        "Solve the problem and give the final answer as one number without its unit after {} steps"
    )
    train = [f"{rule.format(n)} for exercise {n} of book {n}" for n in range(100, 140)]
    held_out = [f"{rule.format(n)} for exercise {n} of book {n}" for n in range(num_held_out)]
    leaked = f"{rule.format(1)}: {CAR_WHEELS.format('Bo', 12)}"
    held_out.append(f"{rule.format(2)}: {CAR_WHEELS.format('Cy', 16)}")
    for found in (MASKED, WORDS):
        assert {place for place, _ in pairs(found, held_out, train)} == set()
    assert (len(train), num_held_out) in pairs(MASKED, held_out, [*train, leaked])


@pytest.mark.parametrize("number", [4, 12, 150])
def test_file_made_from_one_pattern_is_kept_however_small(number: int) -> None:
    pattern = "Every week a busy farmer sells {} eggs at the market and keeps another {} for us"
    train = [pattern.format(n, n + 1) for n in range(number)]
    for rule in RULES:
        assert pairs(rule, [pattern.format(900, 1)], train) == []
    assert pairs(MASKED, [pattern.format(900, 1)], train[:1]) == [(0, 0)]


def test_runs_do_not_cross_from_one_question_to_the_next() -> None:
    words = LONG.split()
    assert len(word_runs(Words.of([" ".join(words[:7]), " ".join(words[7:])]), WORDS).hashes) == 0
    runs = word_runs(Words.of([LONG, LONG], 5), WORDS)
    assert set(runs.owners.tolist()) == {5, 6}
    assert len(runs.hashes) == 2 * (len(words) - 12)


def test_hashes_of_runs_are_the_same_in_every_process() -> None:
    runs = word_runs(Words.of(["What did 3 people in the small house see today?"]), MASKED)
    assert [f"{int(run):016x}" for run in runs.hashes] == [
        "91b6d0095c0cb804",
        "d67ff04fffd8c734",
        "d793dc78c38bf65d",
    ]


# --- the questions of a run --------------------------------------------------------------------


def write(folder: Path, name: str, *texts: str) -> str:
    rows = [{"id": n, "question": text, "answer": n} for n, text in enumerate(texts)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def load(folder: Path, train: Sequence[str], test: Sequence[str], **changes: Any) -> QuestionSet:
    source = {
        "kind": "files",
        "train": write(folder, "train.jsonl", *train),
        "test": write(folder, "test.jsonl", *test),
        "answer_type": "number",
    }
    datasets = {"mine": {"source": source, "dev_share": 0.0}}
    tree = {"folder": str(folder), "datasets": datasets} | changes
    return load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))


TRAIN = ("Short one?", f"{LONG} and one more", CAR_WHEELS.format("Bo", 12), "Another question?")
TEST = ("SHORT  one?", f"Well, {LONG}", CAR_WHEELS.format("Cy", 16))


def test_overlaps_are_dropped_before_anything_is_generated_and_counted(tmp_path: Path) -> None:
    loaded = load(tmp_path, TRAIN, TEST)
    assert [q.question for q in loaded.questions("train")] == ["Another question?"]
    train, test = loaded.counts
    assert train["overlaps"] == {"exact": 1, "words": 1, "masked": 1}
    assert (train["num_dropped_overlap"], train["num_kept"]) == (3, 1)
    assert (test["num_dropped_overlap"], test["num_kept"]) == (0, 3)


def test_which_question_overlaps_with_which_is_stored(tmp_path: Path) -> None:
    rows = load(tmp_path, TRAIN, TEST).overlaps.to_pylist()
    found = {(row["question_id"], row["held_out_id"], row["rule"]) for row in rows}
    assert found == {
        ("mine/train/0", "mine/test/0", "exact"),
        ("mine/train/1", "mine/test/1", "words"),
        ("mine/train/2", "mine/test/2", "masked"),
    }
    assert all(0 < row["share"] <= 1 and row["held_out_dataset"] == "mine" for row in rows)


def test_overlaps_in_part_are_kept_and_stored_where_the_config_says_so(tmp_path: Path) -> None:
    loaded = load(tmp_path, TRAIN, TEST, overlaps="keep")
    kept = {q.question for q in loaded.questions("train")}
    assert kept == set(TRAIN[1:])
    assert loaded.counts[0]["num_dropped_overlap"] == 1
    assert loaded.counts[0]["overlaps"] == {"exact": 1, "words": 1, "masked": 1}
    assert loaded.overlaps.num_rows == 3


def test_train_that_only_overlaps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all of its 1 training questions are also in a dev"):
        load(tmp_path, [CAR_WHEELS.format("Bo", 12)], [CAR_WHEELS.format("Cy", 16)])


def test_quickstart_keeps_all_its_generated_questions() -> None:
    tree = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text())
    settings = QuestionSettings.model_validate_json(json.dumps(tree["questions"]))
    loaded = load_questions(settings)
    for count in loaded.counts:
        assert count["num_kept"] == count["num_wanted"]
        assert count["overlaps"] == {"exact": 0}


@pytest.fixture(scope="module")
def benchmarks() -> QuestionSet:
    datasets: dict[str, Any] = {}
    for path in sorted(SHARED_DATA.glob("*.jsonl")):
        name, split, _ = path.name.split(".")
        dataset = datasets.setdefault(
            name, {"source": {"kind": "files"}, "domain": "out_of_domain"}
        )
        dataset["source"][split] = path.name
        if split == "train":
            dataset["domain"] = "in_domain"
    tree = {"folder": str(SHARED_DATA), "datasets": datasets}
    return load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))


def train_counts(loaded: QuestionSet) -> dict[str, SplitCounts]:
    return {count["dataset"]: count for count in loaded.counts if count["split"] == "train"}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no ../shared/data beside the repository")
def test_known_overlaps_of_the_shared_benchmarks_are_dropped(benchmarks: QuestionSet) -> None:
    train = set(benchmarks.split("train").column("question_id").to_pylist())
    known = json.loads((SHARED_DATA / "train_heldout_overlaps.json").read_text())
    assert len(train) > 15_000
    assert not train & {overlap["train"] for overlap in known}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no ../shared/data beside the repository")
def test_overlaps_of_the_shared_benchmarks_are_found_and_little_else(
    benchmarks: QuestionSet,
) -> None:
    counts = train_counts(benchmarks)
    assert counts["numglue"]["num_dropped_overlap"] > 562
    for name in ("gsm8k", "arc_challenge", "arc_easy", "openbookqa"):
        assert counts[name]["num_dropped_overlap"] < 0.01 * counts[name]["num_read"]


def test_hashes_of_words_are_kept_only_as_far_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlaps, "_KNOWN_WORDS", 2)
    few = overlaps._WordHashes()
    words = ["one", "two", "three", "four", "one"]
    assert [few[word] for word in words] == [overlaps._HASHES[word] for word in words]
    assert len(few) <= 3
