"""The grader beside math-verify: they agree, and where they do not it is known why."""

from __future__ import annotations

import pytest

from benchmarks.agreement import explanation, pairs
from tests.conftest import SHARED_DATA


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the benchmark files are not here")
def test_grader_agrees_with_math_verify_or_the_difference_is_explained() -> None:
    judged = list(pairs(SHARED_DATA, limit=10))
    different = [pair for pair in judged if pair.ours != pair.theirs]
    assert len(different) <= 0.01 * len(judged)
    assert [pair for pair in different if explanation(pair) is None] == []
