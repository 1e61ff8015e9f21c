"""The line of now and the table."""

from __future__ import annotations

import io

from cluster.terminal import ProgressLine, format_table


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
