"""The report as a reader sees it, in Chromium: verdict, charts, tables, phone, dark, print."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regenesis import main
from tests.finished_run import FinishedRun
from tests.report.browser import Browser
from tests.report.invented_run import (
    Invented,
    invented_run,
    with_decision,
    write_invented_evaluation,
    write_invented_run,
)
from tests.report.texts import HOSTILE

SECTIONS = (
    *("verdict", "scores", "readings", "changed", "funnel", "guidelines", "coverage", "rounds"),
    *("training", "execution", "provenance"),
)
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the report of invented runs; the same ones are written once."""
    made: dict[str, Path] = {}

    def write(*runs: dict[str, Any]) -> Path:
        key = repr(runs)
        if key not in made:
            root = tmp_path_factory.mktemp("invented")
            folders = [write_invented_run(root, Invented(**run)).uri for run in runs]
            file = root / "report.html"
            assert main(["report", *folders, "-o", str(file)]) == 0
            made[key] = file
        return made[key]

    return write


def test_every_section_is_drawn_without_a_sound(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    for name in SECTIONS:
        assert (
            chromium.run("return document.getElementById(arguments[0]).children.length", name) > 1
        )
    assert chromium.run("return document.querySelectorAll('svg.plot').length") > 15
    assert "for this checkpoint only" in chromium.text("#verdict")
    assert "mean over 2 tasks" in chromium.text("#verdict")


def test_an_evaluation_is_drawn_without_what_only_runs_have(
    tmp_path: Path, chromium: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_invented_evaluation(tmp_path, {"small": 0.0, "large": 0.3}).uri
    assert main(["report", uri, "-o", str(tmp_path / "report.html")]) == 0
    chromium.open(tmp_path / "report.html")
    assert "large \N{MINUS SIGN} small" in chromium.text("#verdict")
    assert "arithmetic" in chromium.text("#scores")
    assert chromium.run("return document.getElementById('guidelines')") is None
    capsys.readouterr()
    assert main(["show", uri]) == 0
    assert "evaluation: an evaluation" in capsys.readouterr().out


def test_a_run_that_is_not_finished_says_so(report: Write, chromium: Browser) -> None:
    chromium.open(report({"is_finished": False}))
    assert "so far" in chromium.text("#verdict")
    assert "round_1/paths (24 questions)" in chromium.text("#verdict")
    assert "round 0" in chromium.text("#scores")
    assert "round 1" in chromium.text("#guidelines")


def test_a_run_in_its_first_paths_has_the_texts_of_its_guidelines(
    report: Write, chromium: Browser
) -> None:
    chromium.open(report({"name": "begun", "is_finished": False, "rounds": 1}))
    chromium.run("document.querySelectorAll('#provenance details').forEach((e) => (e.open = true))")
    name = chromium.run("return readData('report').runs[0].guidelines[0].guideline_id")
    assert f"Use {name}." in chromium.text("#provenance")
    assert "Solve it step by step" in chromium.text("#provenance")
    chromium.run("document.querySelector('#paths [role=option]').click()")
    chromium.wait(lambda: "Use " in chromium.text("#paths .pane"))


def test_a_run_of_the_steps_themselves_is_drawn(
    finished_run: FinishedRun, tmp_path: Path, chromium: Browser
) -> None:
    file, before = tmp_path / "report.html", finished_run.folder.sizes()
    assert main(["report", finished_run.folder.uri, "-o", str(file)]) == 0
    assert finished_run.folder.sizes() == before
    chromium.open(file)
    assert "sums" in chromium.text("#funnel")


def test_decisions_and_alarms_are_shown(tmp_path: Path, chromium: Browser) -> None:
    run = with_decision(invented_run(tmp_path, num_train=4, num_test=4))
    assert main(["report", run.folder.uri, "-o", str(tmp_path / "report.html")]) == 0
    chromium.open(tmp_path / "report.html")
    shown = chromium.text("#rounds")
    assert "round 1: diversity of the paths of a question: 12.0 %, below 30.0 %." in shown
    assert "round 1: the model is not adopted" in shown
    assert "no alarms" not in shown


def test_arms_show_a_dot_for_each_seed_and_their_difference(
    report: Write, chromium: Browser
) -> None:
    arms = {"plain": 4, "guided": 6}
    chromium.open(
        report(
            *(
                {"name": f"{arm}_s{seed}", "seed": seed, "guidelines_per_question": number}
                | {"rounds": 1, "num_train": 6, "num_test": 20}
                for arm, number in arms.items()
                for seed in (0, 1, 2)
            )
        )
    )
    verdict = chromium.text("#verdict")
    assert "guided \N{MINUS SIGN} plain" in verdict
    assert "over 3 seeds" in verdict
    open_dots = chromium.run(
        "return [...document.querySelectorAll('#scores figure')].slice(0, 2)"
        ".map((each) => each.querySelectorAll('circle[r=\"3\"]').length)"
    )
    assert open_dots == [2 * 2 * 3, 3 * 2 * 3]  # arms or quantities, groups of tasks, seeds


def test_two_runs_stand_side_by_side_with_their_settings(report: Write, chromium: Browser) -> None:
    chromium.open(report({"name": "one"}, {"name": "two", "seed": 7}))
    verdict, made = chromium.text("#verdict"), chromium.text("#provenance")
    assert "over 2 seeds" in verdict
    assert "two (round 1) \N{MINUS SIGN} one (round 1)" not in verdict  # two draws of one method
    assert "one, two: tuned \N{MINUS SIGN} base" in chromium.text("#scores")
    assert "synthesis.seed" in made
    assert "two" in chromium.text("#scores")


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 1_000_000], ids=range(len(HOSTILE) + 1))
def test_hostile_texts_in_every_field_do_nothing(
    text: str, report: Write, chromium: Browser
) -> None:
    kind = text if len(text) < 1_000 else "long"
    number = HOSTILE.index(text) if text in HOSTILE else len(HOSTILE)
    if any(letter in text for letter in "\0\ud800"):  # no name of a file or Parquet can hold these
        text = "\N{RIGHT-TO-LEFT OVERRIDE}" + text.encode("ascii", "backslashreplace").decode()
    few = 1 if kind == "long" else 4
    size = {"rounds": 1, "num_train": few, "num_test": few, "guidelines_per_question": few}
    chromium.open(report({"name": f"run_{number}", "text": text, **size}))
    for name in SECTIONS:
        assert (
            chromium.run("return document.getElementById(arguments[0]).children.length", name) > 1
        )
    assert "broken" not in chromium.run("return document.title")
    assert (
        chromium.run("return document.querySelectorAll('#report script, #report img').length") == 0
    )
    if kind != "long":
        assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")


def test_controls_and_bidi_marks_are_shown(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    shown = chromium.run("return visible(arguments[0])", "a\u202eb\0c\u2028d")
    assert shown == "a\\u202eb\\u0000c\\u2028d"


def test_columns_sort_in_both_directions(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    script = """
      const table = [...document.querySelectorAll("#guidelines table")][0];
      const place = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "credit");
      const button = table.tHead.rows[0].cells[place].querySelector("button");
      const read = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[place].textContent));
      const first = read(); button.focus(); button.click(); const second = read();
      return [first, second, table.tHead.rows[0].cells[place].getAttribute("aria-sort")];
    """
    first, second, told = chromium.run(script)
    assert first == sorted(first, reverse=True)
    assert second == sorted(second)
    assert told == "ascending"


def test_csv_has_every_row_and_quotes_formulas(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    cells = ["=1+1", "+1", "-x", "@a", " =1", 'say "no"', -3.5, None, "plain"]
    rows = [{"name": cell} for cell in cells]
    read = list(csv.reader(chromium.run("return csvText(arguments[0])", rows).splitlines()))
    quoted = ["'=1+1", "'+1", "'-x", "'@a", "' =1", 'say "no"', "-3.5", "", "plain"]
    assert [row[0] if row else "" for row in read[1:]] == quoted
    chromium.run("document.querySelector('#changed .csv').click()")
    chromium.wait(lambda: (chromium.downloads / "changed_questions.csv").exists())
    with (chromium.downloads / "changed_questions.csv").open(newline="") as file:
        saved = list(csv.DictReader(file))
    number = chromium.run("return records(readData('report').tables.changed_questions).length")
    assert len(saved) == number > 0


def test_a_cell_of_the_heat_map_filters_the_paths(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    link = "#guidelines td a.heat"
    guideline = chromium.run(
        "return document.querySelector(arguments[0]).getAttribute('aria-label').split(',')[0]", link
    )
    chromium.run("document.querySelector(arguments[0]).click()", link)
    assert chromium.run("return location.hash").startswith(
        f"#filter=guideline:{guideline}&dataset:"
    )


def test_funnel_shows_every_filter_in_order_and_what_is_not_known_so_far(
    report: Write, chromium: Browser
) -> None:
    chromium.open(report({}, {"name": "own", "own_reason": "too many lists", "is_finished": False}))
    heads = (
        "return [...document.querySelector('#funnel thead').rows[0].cells].map((c) => c.innerText)"
    )
    shown = ["paths", "finished", "answer read", "right", "not leaked", "other filters", "unique"]
    heads_shown = chromium.run(heads)
    start = heads_shown.index("paths")
    assert heads_shown[start:] == [*shown, "kept", "examples"]
    text = chromium.text("#funnel")
    assert "own: round 1, so far" in text
    assert "No examples have been selected so far (own: round 1)" in text
    left = chromium.run("return records(readData('report').tables.filters)")
    for run, round_ in (("invented", 0), ("own", 0), ("own", 1)):
        own = [row for row in left if (row["run"], row["round"]) == (run, round_)]
        for stage in ("paths", "not leaked", "unique", "kept"):
            if numbers := [row["number"] for row in own if row["stage"] == stage]:
                assert str(sum(numbers)) in chromium.text("#funnel figure")
    chromium.run("document.querySelector('#funnel .csv').click()")
    chromium.wait(lambda: (chromium.downloads / "filters.csv").exists())
    with (chromium.downloads / "filters.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(left)


def test_heat_map_shows_yield_length_or_what_was_cut_off(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    buttons = "#guidelines [aria-label='What the cells show'] button"
    names = chromium.run(
        "return [...document.querySelectorAll(arguments[0])].map((b) => b.textContent)", buttons
    )
    assert names == ["yield", "length", "cut off"]
    rows = chromium.run("return records(readData('report').tables.guideline_yield)")
    for name, key in (("length", "right_tokens"), ("cut off", "cut_off_share")):
        chromium.run(
            "const b = [...document.querySelectorAll(arguments[0])]"
            ".find((each) => each.textContent === arguments[1]); b.focus(); b.click();",
            buttons,
            name,
        )
        cells = chromium.run(
            "return [...document.querySelectorAll('#guidelines a.heat')].map((a) => a.textContent)"
        )
        of_round = [row for row in rows if row["round"] == 0 and row[key] is not None]
        times = 1 if name == "length" else 100
        expected = sorted(round(times * row[key]) for row in of_round)
        assert len(cells) == len(expected)
        assert sorted(map(int, cells)) == pytest.approx(expected, abs=1)
        assert chromium.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
        assert name in chromium.text("#guidelines caption")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_page_fits_the_window_in_both_colours(
    width: int, scheme: str, report: Write, chromium: Browser
) -> None:
    chromium.emulate(width=width, scheme=scheme)
    chromium.open(report({}))
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    colors = chromium.run(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    background, letters = (sum(map(int, c[4:-1].split(","))) for c in colors)
    assert (background > letters) == (scheme == "light")
    widths = chromium.run(
        "return [...document.querySelectorAll('svg.plot')]"
        ".map((chart) => chart.getBoundingClientRect().right)"
    )
    assert max(widths) <= width


def test_every_control_is_reached_by_the_keyboard(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    unreachable = chromium.run(
        """return [...document.querySelectorAll("#report [tabindex='-1'], #report [onclick]")]
             .filter((e) => !e.closest("#paths")).length"""
    )
    assert unreachable == 0
    assert chromium.run(
        "return [...document.querySelectorAll('#report svg.plot')].every("
        "(s) => s.getAttribute('aria-label').length > 5)"
    )


def test_the_page_prints(report: Write, chromium: Browser) -> None:
    chromium.open(report({}))
    printed = chromium.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000


def test_the_same_run_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = write_invented_run(tmp_path, Invented(rounds=1, num_train=1, num_test=1)).uri
    output = ["-o", str(tmp_path / "report.html")]
    assert main(["report", uri, uri, *output]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["report", uri, "-o", str(tmp_path / "report")]) == 2
    assert "ends with .html" in capsys.readouterr().err
