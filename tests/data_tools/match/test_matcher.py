import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.match import heads, matcher
from data_tools.match.matcher import QueryMatcher
from data_tools.match.pool.clean import single_spaced
from data_tools.tables.schema import DataError
from data_tools.text.fold import fold
from data_tools.text.tokens import cut
from tests.data_tools.match.reference_matcher import ReferenceMatcher, normal_form


def query_matcher(queries, case_sensitive=False):
    return QueryMatcher(pa.array(queries, pa.string()), case_sensitive)


def found(queries, caption):
    folded = [fold(query) for query in queries]
    return [queries[number] for number in query_matcher(folded).match(caption)]


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


@pytest.mark.parametrize(
    ("query", "caption"),
    [
        ("father's day", "Happy Father\u2019s Day!"),
        ("father's day", "father\u02bcs day"),
        ("valentine\u2018s", "Valentine\uff07s"),
        ("mcdonald`s", "mcdonald\u00b4s"),
        ('12" vinyl', "a 12\u2033 vinyl"),
        ('"the end"', "\u00abThe End\u00bb"),
        ("e-mail", "e\u2011mail"),
        ("e\u2010mail", "an E\u2212MAIL"),
        ("2019-2020", "2019\u20132020"),
        ("foot\u00adball", "football"),
        ("basketball", "a bas\u00adket\u200bball\ufeff"),
        ("\u202bdog\u202c", "\u2066dog\u2069"),
        (
            "\u06a9\u062a\u0627\u0628\u062e\u0627\u0646\u0647",
            "\u06a9\u062a\u0627\u0628\u200c\u062e\u0627\u0646\u0647",
        ),
        ("\u2764", "I \u2764\ufe0f you"),
        ("r&b", "R&amp;B music"),
        ("r&b", "R&amp;amp;B music"),
        ("r&amp;b", "R&#38;B"),
        ("children's book", "Children&#39;s book"),
        ("children's book", "children&#x2019;s&nbsp;book"),
        ("children's book", "Children&amp;rsquo;s Book"),
        ("caf\u00e9", "CAF&EACUTE;"),
        ("caf\u00e9", "cafe&#769;"),
        ("basketball", "basket&shy;ball"),
    ],
)
def test_what_looks_the_same_matches(query, caption):
    assert found([query], caption) == [query]
    assert query_matcher([query]).match(caption) == [0]
    assert query_matcher([query], case_sensitive=True).match(query) == [0]


def test_a_broken_entity_is_text():
    assert found(["chips", "copy"], "fish&chips &copy") == ["chips", "copy"]
    assert found(["amp"], "R&amp B") == ["amp"]


def test_entities_do_not_part_or_join_captions():
    matches = query_matcher(["a b", "b"]).match_many(
        pa.array(["a&#10;", "b", "a &NewLine; b", "a&"])
    )
    assert list(zip(matches.row.tolist(), matches.query.tolist())) == [(1, 1), (2, 0), (2, 1)]


def test_scripts_without_spaces_need_no_bounds():
    assert found(["寿司", "屋"], "美味しい寿司屋") == ["寿司", "屋"]
    assert found(["USB"], "USB接続") == ["USB"]


def test_a_vowel_sign_belongs_to_its_letter():
    assert found(["กา"], "กาแฟ") == ["กา"]
    assert found(["ก"], "กิน") == []
    assert found(["हिन्द"], "हिन्दी") == []


def test_ids_are_sorted_and_distinct():
    assert query_matcher(["b", "a"]).match("a b a b") == [0, 1]


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
    assert query_matcher(queries).match(caption) == wanted


# Every rule has characters here: marks, what NFKC and folding change or undo, scripts without
# spaces with their vowel signs, white space of all kinds, what is no character, halves of emoji.
ODD = (
    "aAbB1 _-+'.&\u00e9\u0301\u0327\u00df\u1e9e\u0130\u0131\ufb01\u017f\u00b2\u00bd\u00a8"
    "\u3000\u2028\x1c\x85\t\n\u0915\u093f\u094d\u0e01\u0e34\u0e33\u732b\u5c4b\u304b\u3099\u30f4"
    "\uff76\uff9e\uac00\u1100\u1161\U00020000\U0001f436\u200d\ufffe\x00"
    "\u2019\u02bc\u00b4`\u201c\u2033\u2011\u2013\u2212\u00ad\u200b\u202b\ufe0f;"
)
ENTITIES = st.lists(
    st.sampled_from(
        "&amp; &lt; &#39; &#x2019; &eacute; &nbsp; &shy; & amp; a t; &#38; &zz; b".split()
    )
).map("".join)
TEXT = st.one_of(
    ENTITIES,
    st.text(ODD, max_size=25),
    st.text("ab ", max_size=25),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def normal_queries(texts, case_sensitive):
    normal = dict.fromkeys(normal_form(text, case_sensitive) for text in texts)
    return [query for query in normal if query]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.lists(TEXT, max_size=8), st.booleans())
@example(["a\u0301"], ["a", "\u0301"], False)
@example(["c++", "++", "+"], ["c", "++", "+ +"], False)
def test_equals_the_reference_in_all_scripts(queries, captions, case_sensitive):
    normal = normal_queries([*queries, *captions[:2]], case_sensitive)
    tidy = single_spaced(pa.array(captions, pa.string()))
    matches = query_matcher(normal, case_sensitive).match_many(tidy)
    reference = ReferenceMatcher(normal, case_sensitive) if normal else None
    wanted = [reference.match(caption) if reference else [] for caption in captions]
    got = [matches.query[matches.row == row].tolist() for row in range(len(captions))]
    assert got == wanted
    assert matches.row.dtype == np.int64 and matches.query.dtype == np.int32


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([40, 1 << 20]), st.sampled_from([3, 22]))
def test_equals_the_reference_over_many_words(seed, chunk_bytes, slot_bits):
    """Long queries that overlap, small chunks, hash tables so small that false alarms abound."""
    random = np.random.default_rng(seed)
    words = ["a", "b", "ab", "\u00e9", "\u732b", "dog", "-"]

    def phrases(count, longest):
        return [" ".join(random.choice(words, random.integers(1, longest))) for _ in range(count)]

    queries = normal_queries(phrases(30, 6), False)
    captions = phrases(20, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matcher, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(heads, "SLOT_BITS", slot_bits)
        matches = query_matcher(queries).match_many(pa.array(captions))
    reference = ReferenceMatcher(queries)
    for row, caption in enumerate(captions):
        assert matches.query[matches.row == row].tolist() == reference.match(caption)


def test_a_query_longer_than_the_hash_table_can_say():
    query = " ".join(f"a{number}" for number in range(300))
    assert query_matcher([query]).match(f"b {query} b") == [0]
    assert query_matcher([query]).match(query.replace("a299", "b")) == []


def test_what_the_filter_leaves_out_parts_what_it_keeps():
    queries = ["\u7532\u4e59\u4e19", "\u4e01\u620a", "\u4e19\u4e01"]
    assert query_matcher(queries).match("\u7532\u4e59\u4e19x\u4e01\u620a") == [0, 1]


def test_more_tokens_than_fit_three_bytes(monkeypatch):
    codes = matcher.TokenCodes(np.ones(2**20 + 1, bool), space=0)
    content, starts = codes.encode(np.array([1, 0, 2**20]))
    assert starts.tolist() == [0, 4, 5] and len(content) == 9
    assert max(content[1:4] + content[6:]) < 0x80


def test_a_match_does_not_cross_captions():
    matches = query_matcher(["a b", "+ +"]).match_many(pa.array(["a", "b", "a +", "+ b"]))
    assert len(matches.row) == 0


def test_slices_and_empty_arrays():
    captions = pa.array(["dog", "cat", "a cat", "\u732b"])
    matcher_ = query_matcher(["cat", "\u732b", "a cat"])
    assert matcher_.match_many(captions.slice(2, 2)).row.tolist() == [0, 0, 1]
    assert matcher_.match_many(captions.slice(2, 2)).query.tolist() == [0, 2, 1]
    assert len(matcher_.match_many(captions.slice(0, 0)).row) == 0
    assert len(matcher_.match_many(pa.array([], pa.string())).row) == 0


def test_case_when_it_counts():
    assert query_matcher(["Turkey", "turkey"], case_sensitive=True).match("a turkey") == [1]
    assert query_matcher(["Turkey"], case_sensitive=True).match("TURKEY") == []


@pytest.mark.parametrize("queries", [["cat", "cat"], ["a cat", "cat", "a cat"]])
def test_a_query_twice_is_refused(queries):
    with pytest.raises(DataError, match="twice"):
        query_matcher(queries)


def test_what_matches_everywhere_is_found_once_a_caption():
    caption = " ".join(["a"] * 5000)
    assert query_matcher(["a", "a a", "a a a"]).match(caption) == [0, 1, 2]


def test_white_space_is_that_of_python():
    space = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    for char in space:
        texts = [f"a{char}b", f"{char}a", f"a{char}", f"a{char} b"]
        wanted = [" ".join(text.split()) for text in texts]
        assert single_spaced(pa.array(texts)).to_pylist() == wanted


@given(st.lists(TEXT))
def test_tokens_put_together_are_the_folded_text(texts):
    tidy = single_spaced(pa.array(texts, pa.string()))
    tokens = cut(tidy, case_sensitive=False)
    joined = b"".join(tokens.values.to_pylist()).decode()
    assert joined == "".join(fold(text) + "\n" for text in tidy.to_pylist())
    assert tokens.row.tolist() == sorted(tokens.row.tolist())
    assert unicodedata.is_normalized("NFKC", joined)
