"""Assembles the report: one HTML file without any connection.

The file contains our scripts and styles (`assets`), the plotting library (`assets/vendor`), and the
data as inert elements::

    <script type="application/json" id="data-report">{"title": ..., "tables": ...}</script>
    <script type="text/plain" id="chunk-paths-0">H4sIAAAA...</script>

Texts that a model wrote are in the data only and never in the HTML. The policy in the head allows
exactly these scripts and styles, by their hashes, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    *("vendor/plot.js", "text.js", "data.js", "table.js", "marks.js", "verdict.js", "scores.js"),
    *("synthesis.js", "rounds.js", "provenance.js"),
    *("paths_index.js", "paths_pane.js", "paths_list.js", "paths.js", "judge.js", "main.js"),
)
"""In the order in which they run. Each is a classic script; their functions are global."""
STYLES = ("report.css", "paths.css")
PLOT_STYLE = """:where(.plot) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot text),
:where(.plot tspan) {
  white-space: pre;
}"""
"""What Observable Plot puts into a <style> of each chart whose `className` is `plot`."""
_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    '<meta name="referrer" content="no-referrer">\n'
    '<title>ReGenesis report</title>\n<link rel="icon" href="data:,">\n'
)
_BODY = (
    "</head>\n<body>\n"
    "<noscript>This report is drawn by the script that it contains; allow it.</noscript>\n"
    '<header id="top"></header>\n<nav id="contents" aria-label="Contents"></nav>\n'
    '<main id="report"></main>\n'
)


def assemble(data: Mapping[str, Any], chunks: Mapping[str, Iterable[bytes]] | None = None) -> bytes:
    """The HTML file.

    `data` has JSON values by name, which the scripts read by `readData(name)`. `chunks` has
    compressed parts by name, which they open by `openChunk(name, number)` when they need them.
    """
    scripts = [_asset(name) for name in SCRIPTS]
    styles = [_asset(name) for name in STYLES]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(scripts)}",
            f"style-src {_hashes([*styles, PLOT_STYLE])}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = [_HEAD.format(policy=policy)]
    parts += [f"<style>{style}</style>\n" for style in styles]
    parts.append(_BODY)
    parts += [_inert("application/json", f"data-{name}", as_json(data[name])) for name in data]
    for name, compressed in (chunks or {}).items():
        parts += [
            _inert("text/plain", f"chunk-{name}-{number}", base64.b64encode(chunk).decode())
            for number, chunk in enumerate(compressed)
        ]
    parts += [f"<script>{script}</script>\n" for script in scripts]
    return "".join([*parts, "</body>\n</html>\n"]).encode()


def as_json(value: Any) -> str:
    """JSON in ASCII that ends no element: every `<` is escaped, as are the line separators, bidi
    controls and lone surrogates."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hashes(texts: Iterable[str]) -> str:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _inert(kind: str, name: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'
