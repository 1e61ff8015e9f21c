"""The assembled file: its policy, its inert data, and what our scripts may not do."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from pipelines.report.page import ASSETS, SCRIPTS, assemble
from tests.report.texts import HOSTILE

FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|"
    r"createContextualFragment|DOMParser|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\("
)


def test_own_scripts_build_no_html_and_open_no_connection() -> None:
    own = [name for name in SCRIPTS if not name.startswith("vendor/")]
    assert sorted(own) == sorted(path.name for path in ASSETS.glob("*.js"))
    for name in own:
        assert FORBIDDEN.findall((ASSETS / name).read_text()) == [], name


def test_the_vendored_bundle_is_the_one_that_was_built() -> None:
    vendor = ASSETS / "vendor"
    written = (vendor / "plot.js.sha256").read_text().split()
    assert written == [hashlib.sha256((vendor / "plot.js").read_bytes()).hexdigest(), "plot.js"]
    assert "== @observablehq/plot 0.6.17" in (vendor / "LICENSES.txt").read_text()


def test_the_policy_names_every_script_and_style_and_no_address() -> None:
    page = assemble({"report": None}).decode()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    assert not re.search(r"unsafe|http|\*", policy)
    assert rules["script-src"].count("'sha256-") == len(SCRIPTS) == page.count("<script>")


@pytest.mark.parametrize("text", HOSTILE)
def test_data_end_no_element(text: str) -> None:
    page = assemble({"report": {text: text}})
    [data] = re.findall(rb'id="data-report">([^<]*)</script>', page)
    assert json.loads(data) == {text: text}
    assert data.isascii()
