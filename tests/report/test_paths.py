"""The browser of paths in a real Chromium: what it shows is what the rows of the run say."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from pipelines.report.page import ASSETS
from regenesis import main
from tests.finished_run import FinishedRun
from tests.report.browser import Browser
from tests.report.pages import hostile_record, write_page

HOSTILE = {
    "script": "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>",
    "end": "</script><script>window.hurt = 1</script><!-- ]]> ${window.hurt = 1}",
    "separators": "a\u2028b\u2029c\u0085d",
    "nul": "a\x00b\x1b[31mc\x7fd",
    "surrogates": "a\ud800b\udfffc",
    "bidi": "a\u202eb\u2066c\u200fd\ufeff",
    "prototype": "__proto__",
    "formula": "=HYPERLINK(0)",
    "address": "javascript:window.hurt=1&filter=verdict:x%",
}


@pytest.fixture(scope="session")
def report(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", finished_run.folder.uri, "-o", str(file)]) == 0
    return file


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition returns, once that is true."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def opened(chromium: Browser, file: Path, fragment: str = "#paths") -> None:
    """Open the page and wait for its list."""
    chromium.open(file, fragment)
    wait_for(lambda: status(chromium) not in ("", "Searching …"))
    # The charts above are drawn after the list, which then has to be brought back into view.
    drawn = "return document.querySelector('#paths').getBoundingClientRect().top < innerHeight / 2"
    wait_for(lambda: chromium.run(drawn))


def status(chromium: Browser) -> str:
    return chromium.text("#paths .status")


def shown_number(chromium: Browser) -> int:
    """How many records the filters leave."""
    return int(status(chromium).split()[0].replace(",", ""))


def choose(chromium: Browser, field: str, text: str) -> None:
    """Choose the value of a filter whose option begins with a text."""
    chromium.run(
        """const select = document.querySelector(`#paths select[data-field=${arguments[0]}]`);
        const option = [...select.options].find((each) => each.text.startsWith(arguments[1]));
        select.value = option.value;
        select.dispatchEvent(new Event("change"));""",
        field,
        text,
    )


def search(chromium: Browser, text: str, expected: int) -> None:
    """Type into the search and wait for so many records."""
    chromium.run(
        """const field = document.querySelector("#paths input[type=search]");
        field.value = arguments[0];
        field.dispatchEvent(new Event("input"));""",
        text,
    )
    wait_for(lambda: status(chromium).startswith(f"{expected} "))


def press(chromium: Browser, *keys: str) -> None:
    ActionChains(chromium.driver).send_keys(*keys).perform()


def pane(chromium: Browser) -> str:
    return chromium.text("#paths .pane")


def pane_of(chromium: Browser, path_id: str) -> str:
    """The lineage, once it is that of a path."""
    wait_for(lambda: path_id in pane(chromium))
    return pane(chromium)


def all_paths(run: FinishedRun) -> list[dict[str, Any]]:
    return [path | {"row": row} for row in run.rows for path in row["paths"]]


def selected(run: FinishedRun, name: str, *below: str) -> list[dict[str, Any]]:
    """The rows of a table of the examples."""
    import pyarrow.parquet as pq

    folder = Path(run.steps["round_0/examples"].folder.path, *below)
    files = sorted(folder.glob(f"{name}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


# --- filters and search ------------------------------------------------------------------------


def test_filters_leave_what_a_recount_of_the_rows_gives(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    paths = all_paths(finished_run)
    opened(chromium, report)
    choose(chromium, "round", "round 0")
    assert shown_number(chromium) == len(paths)
    choose(chromium, "verdict", "wrong")
    wrong = [path for path in paths if path["verdict"] == "wrong"]
    assert shown_number(chromium) == len(wrong) > 0
    choose(chromium, "dataset", "sums")
    sums = [path for path in wrong if path["row"]["dataset"] == "sums"]
    assert shown_number(chromium) == len(sums) > 0
    assert "verdict:wrong" in chromium.run("return location.hash")
    choose(chromium, "verdict", "all")
    choose(chromium, "dataset", "all")
    dropped = selected(finished_run, "dropped", "dropped")
    choose(chromium, "outcome", "wrong")
    assert shown_number(chromium) == sum(row["reason"] == "wrong" for row in dropped)
    choose(chromium, "outcome", "kept")
    assert shown_number(chromium) == len(paths) - len(dropped)


def test_address_of_a_filter_is_followed_and_written(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    guideline = finished_run.rows[0]["paths"][0]["guideline_id"]
    paths = [path for path in all_paths(finished_run) if path["guideline_id"] == guideline]
    opened(chromium, report, f"#filter=guideline:{guideline}&verdict:correct")
    right = [path for path in paths if path["verdict"] == "correct"]
    assert shown_number(chromium) == len(right)
    chromium.run("location.hash = arguments[0]", f"#filter=guideline:{guideline}")
    wait_for(lambda: shown_number(chromium) == len(paths))
    opened(chromium, report, "#filter=verdict:nonsense")
    assert shown_number(chromium) == 0


def test_search_finds_the_paths_whose_texts_have_all_words(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    def texts(path: dict[str, Any]) -> str:
        names = ("adapted_guideline", "structure", "reasoning", "thinking")
        own = [path[name] or "" for name in names]
        return "\n".join([path["row"]["question"], *own]).lower()

    opened(chromium, report, "#filter=round:round%200")
    paths = all_paths(finished_run)
    word, other = paths[0]["reasoning"].split()[0].lower(), "way 3"
    both = sum(word in texts(path) and other in texts(path) for path in paths)
    assert 0 < both < len(paths)
    search(chromium, f'{word.upper()} "{other}"', both)
    assert "text:" in chromium.run("return location.hash")
    press(chromium, Keys.ESCAPE)
    search(chromium, "", len(paths))


# --- lineage -----------------------------------------------------------------------------------


def test_permalink_opens_the_whole_lineage_of_a_kept_path(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    example = next(row for row in selected(finished_run, "train") if row["form"] == "evaluation")
    [path] = [p for p in all_paths(finished_run) if p["path_id"] == example["example_id"]]
    opened(chromium, report, f"#path={quote(path['path_id'])}")
    text = pane_of(chromium, path["path_id"])
    for title in ("Question", "Guideline", "Adapted guideline", "Structure", "Path", "Verdict"):
        assert title in text
    assert "Kept as an example." in text
    assert f"Prompt: {len(example['prompt_token_ids'])} tokens, not learned" in text
    assert f"Target: {len(example['target_token_ids'])} tokens, learned" in text
    shown = chromium.run(
        "return [...document.querySelectorAll('#paths .pane .text')].map((e) => e.textContent)"
    )
    assert shown[0].startswith(path["row"]["question"])
    assert path["structure"] in shown
    assert path["reasoning"] in shown
    learned = chromium.run("return document.querySelector('#paths .learned').textContent")
    assert path["reasoning"] in learned
    mark = chromium.run("return document.querySelector('#paths mark.answer').textContent")
    assert path["predicted"] in mark
    assert chromium.text("#paths .line.active .name") == path["row"]["question_id"]
    # The charts above are drawn after it; the browser stays in view all the same.
    top = "return document.querySelector('#paths').getBoundingClientRect().top"
    time.sleep(1)
    assert 0 <= chromium.run(top) < 200


def test_link_of_a_question_lists_its_paths_and_held_out_ones_have_both_answers(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    row = finished_run.rows[0]
    opened(chromium, report, f"#question={quote(row['question_id'])}")
    assert shown_number(chromium) == len(row["paths"])
    opened(chromium, report, "#filter=round:held-out")
    number = shown_number(chromium)
    assert number == 48
    changes = 0
    for change in ("gained", "lost", "right", "wrong"):
        opened(chromium, report, f"#filter=round:held-out&outcome:{change}")
        changes += shown_number(chromium)
    assert changes == number
    opened(chromium, report, "#filter=round:held-out")
    press(chromium, "j")
    text = wait_for(lambda: "Answer of base" in pane(chromium) and pane(chromium))
    assert "Answer of round_0" in text


def test_unknown_path_is_said_to_be_missing(report: Path, chromium: Browser) -> None:
    opened(chromium, report, "#path=0/nothing/of/it")
    wait_for(lambda: "This file has no path 0/nothing/of/it" in pane(chromium))


def test_runs_with_the_same_path_are_told_apart(tmp_path: Path, chromium: Browser) -> None:
    one, other = (hostile_record(0, text) for text in ("one", "other"))
    same = replace(other, line=other.line._replace(id=one.line.id))
    write_page(tmp_path / "page.html", [one, same], {})
    opened(chromium, tmp_path / "page.html", f"#path={one.line.id}&run=other")
    wait_for(lambda: "other" in pane(chromium))
    assert shown_number(chromium) == 2
    assert chromium.run("return location.hash") == f"#path={one.line.id}&run=other"
    link = chromium.run("return document.querySelector('#paths .links a').getAttribute('href')")
    assert link == f"#path={one.line.id}&run=other"
    opened(chromium, tmp_path / "page.html", "#filter=run:other")
    assert shown_number(chromium) == 1


# --- keys --------------------------------------------------------------------------------------


def test_keyboard_moves_opens_searches_and_helps(
    finished_run: FinishedRun, report: Path, chromium: Browser
) -> None:
    def focus() -> str:
        script = "const e = document.activeElement; return e.className || e.type || e.tagName"
        return str(chromium.run(script))

    opened(chromium, report, "#filter=round:round%200")
    ids = [path["path_id"] for path in all_paths(finished_run)]
    press(chromium, "j")
    first = wait_for(lambda: next((each for each in ids if each in pane(chromium)), None))
    press(chromium, "j")
    wait_for(lambda: first not in pane(chromium) and pane(chromium))
    press(chromium, "k")
    pane_of(chromium, first)
    assert focus() == "lines"
    active = chromium.run(
        """const list = document.querySelector("#paths .lines");
        const line = document.getElementById(list.getAttribute("aria-activedescendant"));
        return [line.getAttribute("aria-selected"), line.getAttribute("aria-setsize")]"""
    )
    assert active == ["true", str(len(ids))]
    press(chromium, Keys.ENTER)
    assert focus() == "pane"
    press(chromium, Keys.ESCAPE)
    assert focus() == "lines"
    press(chromium, Keys.END)
    wait_for(lambda: chromium.text("#paths .line.active") and first not in pane(chromium))
    drawn = chromium.run("return document.querySelectorAll('#paths .line').length")
    assert 0 < drawn < len(ids)
    press(chromium, "/")
    assert focus() == "search"
    press(chromium, "jjj")
    assert chromium.run("return document.activeElement.value") == "jjj"
    press(chromium, Keys.ESCAPE)
    press(chromium, "?")
    assert chromium.run("return document.querySelector('#paths dialog').open")
    press(chromium, Keys.ESCAPE)
    assert not chromium.run("return document.querySelector('#paths dialog').open")
    press(chromium, Keys.ESCAPE)  # in the list: no filter is left
    wait_for(lambda: shown_number(chromium) == len(ids) + 48)


# --- CSV ---------------------------------------------------------------------------------------


def test_csv_has_the_list_and_no_formula(tmp_path: Path, chromium: Browser) -> None:
    records = [hostile_record(n, text) for n, text in enumerate(("=1+1", '-2,"x"\n', "@a", "b"))]
    write_page(tmp_path / "page.html", records, {})
    opened(chromium, tmp_path / "page.html")
    saved = chromium.downloads / "paths.csv"
    saved.unlink(missing_ok=True)
    chromium.run(
        """[...document.querySelectorAll("#paths button")]
        .find((each) => each.textContent === "CSV of this list").click()"""
    )
    wait_for(saved.exists)
    with saved.open(newline="", encoding="utf-8") as stream:
        head, *rows = list(csv.reader(stream))
    assert head[:2] == ["id", "question"]
    assert len(rows) == 4
    assert [row[head.index("dataset")] for row in rows] == ["'=1+1", '\'-2,"x"\n', "'@a", "b"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


# --- hostile texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_in_every_field_is_shown_and_does_nothing(
    name: str, tmp_path: Path, chromium: Browser
) -> None:
    text = HOSTILE[name]
    page = tmp_path / "page.html"
    write_page(page, [hostile_record(0, text), hostile_record(1, "plain")], {text: {text: text}})
    opened(chromium, page)
    press(chromium, "j")
    wait_for(lambda: "Example as trained" in pane(chromium))
    choose(chromium, "dataset", "plain")
    assert shown_number(chromium) == 1
    press(chromium, Keys.ESCAPE)
    press(chromium, Keys.ESCAPE)
    assert chromium.run("return window.hurt") is None
    assert chromium.run("return document.querySelectorAll('#paths img, #paths script').length") == 0
    shown = chromium.run("return document.querySelector('#paths .pane .text').textContent")
    assert not set(shown) & set("\x00\x1b\u202e\u2066\u200f\u2028\ufeff")
    if name not in ("separators", "nul", "surrogates", "bidi"):
        assert shown == text
    else:
        assert shown.startswith("a\\u")
    address = chromium.run("return location.hash")
    opened(chromium, page, address)
    assert shown_number(chromium) == 2


def test_line_of_a_megabyte_is_cut_until_asked_for(tmp_path: Path, chromium: Browser) -> None:
    text = "x" * 2**20
    write_page(tmp_path / "page.html", [hostile_record(0, text)], {})
    opened(chromium, tmp_path / "page.html")
    press(chromium, "j")
    size = "return document.querySelector('#paths .pane .text').textContent.length"
    wait_for(lambda: chromium.run(f"{size} > 0"))
    assert chromium.run(size) == 20_000
    chromium.run("document.querySelector('#paths .pane .text + button').click()")
    assert chromium.run(size) == len(text)
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")


def test_scripts_parse_no_html_and_no_code() -> None:
    for name in ("paths.js", "paths_index.js", "paths_list.js", "paths_pane.js", "judge.js"):
        source = (ASSETS / name).read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "Function(",
            "write(",
        ):
            assert word not in source


# --- looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (400, "light")])
def test_narrow_and_dark_pages_fit_and_are_readable(
    finished_run: FinishedRun, report: Path, chromium: Browser, width: int, scheme: str
) -> None:
    chromium.emulate(width=width, height=800, scheme=scheme)
    path = finished_run.rows[0]["paths"][0]
    opened(chromium, report, f"#path={quote(path['path_id'])}")
    pane_of(chromium, path["path_id"])
    wide = """const root = document.querySelector("#paths");
        return [...root.querySelectorAll("*")].filter((each) =>
          each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".lines"))
          .map((each) => each.outerHTML.slice(0, 80))"""
    assert chromium.run(wide) == []
    colours = chromium.run(
        """const canvas = document.createElement("canvas").getContext("2d", {
          willReadFrequently: true });
        const light = (colour) => {
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          return canvas.getImageData(0, 0, 1, 1).data[1];
        };
        const text = getComputedStyle(document.querySelector("#paths .pane .text"));
        return [light(text.color), light(text.backgroundColor)]"""
    )
    ink, ground = colours
    assert (ink > 150 and ground < 80) if scheme == "dark" else (ink < 80 and ground > 200)
    top = "return document.querySelector('#paths .pane').getBoundingClientRect().top"
    wait_for(lambda: chromium.run(top) < 700)


def test_index_of_the_page_is_json_without_texts(report: Path) -> None:
    """What is searched lies in compressed chunks; the file has no text of a path in the open."""
    page = report.read_text()
    found = page.partition('id="data-paths">')[2].partition("</script>")[0]
    index = json.loads(found)
    assert len(index["ids"]) == index["starts"][-1]
