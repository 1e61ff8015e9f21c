"""The progress line and the table."""

from __future__ import annotations

import io

import pytest

from cluster.terminal import ProgressLine, format_table, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_is_shown_when_it_is_due_or_has_news_and_not_twice() -> None:
    stream = io.StringIO()
    line = ProgressLine(3600, stream)
    line.show("1/9")
    line.show("2/9", due=True)
    line.show("3/9")
    line.show("3/9", lasting=["a is complete"])
    line.end("3/9")
    assert stream.getvalue() == "2/9\na is complete\n3/9\n"


def test_line_on_a_terminal_is_rewritten_and_left_at_the_end() -> None:
    stream = Terminal()
    line = ProgressLine(0, stream)
    line.show("1/2")
    line.end("2/2", lasting=["news"])
    assert stream.getvalue() == "\r\x1b[2K1/2\r\x1b[2Knews\n\r\x1b[2K2/2\n"


def test_table_has_even_columns() -> None:
    table = format_table([["name", "n"], ["a long one", "12"]])
    assert table == "| name       | n  |\n|------------|----|\n| a long one | 12 |"


def test_what_a_terminal_would_obey_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    say("red \x1b[31m, title \x1b]0;gone\x07, \x9b2J, back\rover, \u202eturned\tand\nkept \u00e9")
    shown, rest = capsys.readouterr().out.split(", back")
    assert shown == r"red \x1b[31m, title \x1b]0;gone\x07, \x9b2J"
    assert rest == "\\rover, \\u202eturned\tand\nkept \u00e9\n"
    stream = io.StringIO()
    ProgressLine(0.0, stream).show("d\x1b[2J: 3", lasting=["q\x1bc"], due=True)
    assert "\x1b" not in stream.getvalue()
