"""The sandbox's process: what it computes, and that no text keeps it busy for long."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.extraction import sandbox
from evaluation.extraction.mathematics import MAX_LENGTH, is_bounded, same_mathematics
from evaluation.extraction.sandbox import Calculator


@pytest.fixture(scope="module")
def calculator() -> Iterator[Calculator]:
    calculator = Calculator(cpu_limit_s=0.5)
    yield calculator
    calculator.close()


def test_ask_about_formulas_compares_them(calculator: Calculator) -> None:
    assert calculator.ask({"truth": "x^2", "found": r"x \cdot x"}) == {"same": True}
    assert calculator.ask({"truth": "x^2", "found": "x^3"}) == {"same": False}
    assert calculator.ask({"truth": "x^2", "found": r"\frac{"}) == {"same": False}


def test_ask_what_takes_for_ever_ends_the_child_and_the_next_request_starts_another(
    calculator: Calculator,
) -> None:
    # 9^(9^9) has 370 million digits; nothing but the kernel stops the multiplication.
    assert calculator.ask({"truth": "1", "found": "9^{9^{9}} + 1"}) in ({}, {"same": False})
    assert calculator.ask({"truth": "x", "found": "x"}) == {"same": True}


def test_of_this_process_is_one_for_all_callers() -> None:
    assert Calculator.of_this_process() is Calculator.of_this_process()


def test_a_slow_request_holds_up_no_other() -> None:
    calculator = Calculator(cpu_limit_s=30)
    slow = threading.Thread(
        target=calculator.ask, args=({"truth": "1", "found": "9^{9^{9}} + 1"},), daemon=True
    )
    calculator.ask({"truth": "x", "found": "x"})
    slow.start()
    for _ in range(5):
        assert calculator.ask({"truth": "x^2", "found": r"x \cdot x"}) == {"same": True}
    assert slow.is_alive()
    calculator.close()


def test_processes_after_their_parent_closed_are_gone() -> None:
    calculator = Calculator()
    calculator.ask({"truth": "x", "found": "x"})
    assert calculator._starter is not None
    group = os.getpgid(calculator._starter.pid)
    calculator.close()
    for _ in range(1_000):  # the workers end by themselves, once they see that nobody can ask
        if not group_exists(group):
            return
        time.sleep(0.01)
    pytest.fail("a process is still there")


def test_close_of_what_never_started_is_nothing() -> None:
    calculator = Calculator()
    calculator.close()
    calculator.close()


def test_a_program_that_cannot_start_is_a_fault_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(sandbox, "PROGRAM", broken)
    calculator = Calculator()
    # The first request may see a closed socket before the process is gone.
    with contextlib.suppress(RuntimeError):
        calculator.ask({"truth": "x", "found": "x"})
    assert calculator._starter is not None
    calculator._starter.wait()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"broken\.py ended with code 3"):
            calculator.ask({"truth": "x", "found": "x"})
    calculator.close()


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_that_fails_is_a_fault_and_no_verdict() -> None:
    calculator = Calculator()
    with pytest.raises(RuntimeError, match="KeyError"):
        calculator.ask({"truth": "x"})
    calculator.close()


@pytest.mark.parametrize(
    ("truth", "found", "same"),
    [
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
        (r"\frac{2}{2^{99}}", r"\frac{1}{2^{98}}", True),
        (r"10^{-20}", r"10^{-21}", False),
        (r"2^{2005}+1", r"2^{2005}", False),
        (r"\sqrt{2} \cdot 10^{50}+1", r"\sqrt{2} \cdot 10^{50}", False),
        (r"(\frac{1}{2^{99}}, 3)", r"(\frac{1}{2^{98}}, 3)", False),
        (r"\frac{x}{2^{99}}", r"\frac{x}{2^{98}}", False),
        (r"\frac{\sqrt{3}}{3} \cdot 10^{-30}", r"\frac{10^{-30}}{\sqrt{3}}", True),
        ("0.5x", r"\frac{x}{2}", True),
    ],
)
def test_ask_about_tiny_and_huge_values_compares_them_exactly(
    calculator: Calculator, truth: str, found: str, same: bool
) -> None:
    assert calculator.ask({"truth": truth, "found": found}) == {"same": same}


@pytest.mark.parametrize(
    "formula",
    [
        "10^10^10^10",
        "10^{10^{10}}",
        "2^{99999}",
        "((10^{99})^{99})^{99}",
        "9" * 41,
        "(" * 13 + "x" + ")" * 13,
        "x+" * 61 + "x",
        "x" * (MAX_LENGTH + 1),
        r"\int_0^1 x dx",
        r"\sum_{n=1}^{10} n",
        r"\frac{d}{dx} x",
        "1000!",
        "3!!",
        "(5!)!",
        "1 + 2 + ... + 100",
    ],
)
def test_is_bounded_of_what_may_take_long_is_false(formula: str) -> None:
    assert not is_bounded(formula)
    assert not same_mathematics("x", formula)


@pytest.mark.parametrize(
    "formula",
    [
        "x^2 + 3x^2",
        "e^{x^2}",
        "2^{2005}",
        "(x+1)^2(x-1)^3",
        "5!",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"x^8 + x^7 + x^6 + x^5 + x^4 + x^3 + x^2 + x + 1",
        r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]",
    ],
)
def test_is_bounded_of_an_ordinary_answer_is_true(formula: str) -> None:
    assert is_bounded(formula)
