import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.match import QueryMatcher
from data_tools.queries.fold import fold


def found(queries, caption):
    folded = [fold(query) for query in queries]
    return [queries[number] for number in QueryMatcher(folded).match(caption)]


def test_nested_and_overlapping_queries_all_match():
    queries = ["ice", "ice hockey", "hockey stick", "hockey", "stick", "puck"]
    wanted = ["ice", "ice hockey", "hockey stick", "hockey", "stick"]
    assert found(queries, "An Ice Hockey stick.") == wanted


@pytest.mark.parametrize(
    ("caption", "matches"),
    [
        ("a cat", True),
        ("CAT!", True),
        ("(cat)", True),
        ('"cat"', True),
        ("cat's eye", True),
        ("black-cat-white", True),
        ("Ｃａｔ", True),
        ("category", False),
        ("bobcat", False),
        ("cat5", False),
        ("caté", False),
        ("", False),
    ],
)
def test_word_bounds(caption, matches):
    assert found(["cat"], caption) == (["cat"] if matches else [])


def test_white_space_of_the_caption_does_not_matter():
    assert found(["ice hockey"], "ice \n hockey") == ["ice hockey"]


def test_a_query_that_ends_in_punctuation():
    assert found(["c++", "c"], "C++ for cats") == ["c++", "c"]


def test_scripts_without_spaces_need_no_bounds():
    assert found(["寿司", "屋"], "美味しい寿司屋") == ["寿司", "屋"]
    assert found(["USB"], "USB接続") == ["USB"]


def test_a_vowel_sign_belongs_to_its_letter():
    assert found(["กา"], "กาแฟ") == ["กา"]
    assert found(["ก"], "กิน") == []
    assert found(["हिन्द"], "हिन्दी") == []


def test_ids_are_sorted_and_distinct():
    assert QueryMatcher(["b", "a"]).match("a b a b") == [0, 1]


WORDS = st.text("ab1", min_size=1, max_size=2)
PHRASES = st.lists(WORDS, min_size=1, max_size=2).map(" ".join)


@given(
    st.lists(PHRASES, min_size=1, max_size=8, unique=True),
    st.text("ab1 .-", min_size=0, max_size=30),
)
def test_equals_a_search_by_regular_expression(queries, caption):
    text = " ".join(caption.split())
    wanted = [
        number
        for number, query in enumerate(queries)
        if re.search(rf"(?<![ab1]){re.escape(query)}(?![ab1])", text)
    ]
    assert QueryMatcher(queries).match(caption) == wanted
