from __future__ import annotations

import pytest

from pipelines.selection.similarity import equations, most_diverse, shingles, similarity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 3 + 4 = 7, and 7 * 2 = 14.", ("3+4=7", "7*2=14")),
        ("$3 \\times 4 = 12$ and \\(12 \\div 4 = 3\\)", ("3*4=12", "12/4=3")),
        ("She pays $5 × 3 = $15. Then 15 − 5 = 10", ("5*3=15", "15-5=10")),
        ("1,000 + 24 = 1,024", ("1000+24=1024",)),
        ("x = 4 and the answer is 5", ()),
        ("(3 + 4) * 2 = 14", ("(3+4)*2=14",)),
        ("", ()),
    ],
)
def test_equations(text: str, expected: tuple[str, ...]) -> None:
    assert equations(text) == expected


def test_equations_of_a_chain_are_told_apart_from_a_shorter_one() -> None:
    assert equations("2 + 3 = 5 so 5 + 1 = 6") != equations("2 + 3 = 5")


def test_similarity_of_texts() -> None:
    same = "Add three and four, that makes seven."
    assert similarity(shingles(same), shingles(same.upper())) == 1
    assert similarity(shingles(same), shingles("Nothing of that kind stands here.")) == 0
    one_word = similarity(shingles(same), shingles(same.replace("seven", "eight")))
    assert one_word == pytest.approx(4 / 6)


def test_shingles_of_a_short_text_are_its_words() -> None:
    assert shingles("Hi there") == {"hi there"}
    assert similarity(shingles(""), shingles("")) == 1


def test_most_diverse_takes_the_first_and_then_what_is_least_like_it() -> None:
    texts = ["a b c d e", "a b c d f", "u v w x y", "a b c d e"]
    assert most_diverse(texts, 2) == [0, 2]
    assert most_diverse(texts, 3) == [0, 2, 1]
    assert most_diverse(texts, 9) == [0, 2, 1, 3]
    assert most_diverse([], 2) == []
