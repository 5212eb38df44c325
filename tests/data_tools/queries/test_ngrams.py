import itertools
import math
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.config import QueriesConfig
from data_tools.config.queries import WordCounts
from data_tools.queries.counting import SpilledCounts, rows
from data_tools.queries.ngrams import bigrams, count_text, unigrams, words_and_pairs
from data_tools.queries.wordnet import WordNet
from tests.data_tools.queries import tiny_wordnet


def counted(tmp_path, text, max_keys=1_000_000):
    (tmp_path / "text.txt").write_text(text)
    config = QueriesConfig()
    config.text.paths = [str(tmp_path / "text.txt")]
    config.text.max_keys_in_memory = max_keys
    config.unigrams.counts = WordCounts.text
    config.bigrams.limit = 1
    return count_text(config, None, tmp_path / f"counts-{max_keys}")


@pytest.mark.parametrize(
    ("line", "words", "pairs"),
    [
        ("The Red  car", ["the", "red", "car"], ["the red", "red car"]),
        ("red, car (old)", ["red", "car", "old"], []),
        ("rock'n'roll black-and-white", ["rock'n'roll", "black-and-white"], 1),
        ("- 'tis -- x_y", ["tis", "x", "y"], []),
        ("ＦＵＬＬ Straße", ["full", "strasse"], ["full strasse"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"], ["हिन्दी भाषा"]),
        ("cafe\u0301 noir", ["café", "noir"], ["café noir"]),
        ("a " + "x" * 65 + " b", ["a", "b"], []),
        ("", [], []),
    ],
)
def test_words_and_pairs(line, words, pairs):
    found_words, found_pairs = words_and_pairs(line)
    assert found_words == words
    assert found_pairs == ([" ".join(words)] if pairs == 1 else pairs)


@given(st.text(max_size=80))
def test_every_pair_is_in_the_text_as_it_will_be_looked_for(line):
    from data_tools.text.fold import fold

    for pair in words_and_pairs(line)[1]:
        assert pair in fold(line)


def test_unigrams_by_count_with_ties_in_order(tmp_path):
    counts = counted(tmp_path, "b a c\nc b a\nc d\n")
    found = list(unigrams(counts, 2, tmp_path, 64))
    assert found == [("c", "unigrams:3"), ("a", "unigrams:2"), ("b", "unigrams:2")]


def test_pmi_of_a_hand_computed_text(tmp_path):
    # 12 words; "new york" 2 of (new 3, york 2): log2(2 * 12 / 6) = 2; "the cat" 2 of (the 3, cat
    # 2): the same; "the new" once; "cat sat" 2 of (cat 2, sat 2): log2(24 / 4) = 2.585
    counts = counted(tmp_path, "the cat sat\nthe new york\nthe cat sat\nnew york new\n")
    assert counts.num_words == 12
    found = list(bigrams(counts, 2, tmp_path, 64))
    assert found == [
        ("cat sat", f"bigrams:{math.log2(6):.2f}"),
        ("new york", "bigrams:2.00"),
        ("the cat", "bigrams:2.00"),
    ]


def test_no_pmi_bound_is_portable_but_a_rank_is(tmp_path):
    """The same sentences ten times over have the same PMI, and so the same ranks; but no pair
    reaches 30 in any text of a million words, and those that come nearest are the rarest."""
    text = "red apple tree\nred apple pie\nhapax legomenon\nred car\n"
    once = list(bigrams(counted(tmp_path, text), 1, tmp_path, 64))
    ten = list(bigrams(counted(tmp_path, text * 10, max_keys=999), 10, tmp_path, 64))
    assert once == ten
    assert once[0][0] == "hapax legomenon"
    assert "hapax legomenon" not in dict(bigrams(counted(tmp_path, text), 2, tmp_path, 64))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a b a", "b c", "a, c d", "d d d d"]), max_size=30))
def test_counts_that_were_spilled_are_exact(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("spilled")
    text = "\n".join(texts)
    spilled = counted(folder, text, max_keys=1)
    whole = counted(folder, text)
    expected = Counter(word for line in texts for word in words_and_pairs(line)[0])
    told = {word: int(origin.split(":")[1]) for word, origin in unigrams(spilled, 1, folder, 64)}
    assert told == expected
    assert list(bigrams(spilled, 1, folder, 64)) == list(bigrams(whole, 1, folder, 64))


def test_memory_does_not_grow_with_the_number_of_keys(tmp_path):
    folder = tmp_path / "it's [1] q?x*"
    counts = SpilledCounts(folder, "keys", max_keys=2_000)
    tracemalloc.start()
    for batch in range(100):
        counts.update([f"key number {batch * 1000 + number}" for number in range(1_000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # 100,000 such keys take more than 12 MB
    sql = f"SELECT count(*), sum(count) FROM {counts.summed()}"
    assert list(rows(sql, [], folder, 64)) == [(100_000, 100_000)]


def test_an_empty_count_can_be_asked(tmp_path):
    counts = SpilledCounts(tmp_path, "none", 10)
    assert list(rows(f"SELECT key FROM {counts.summed()}", [], tmp_path, 64)) == []


def test_order_of_the_text_changes_nothing(tmp_path):
    lines = ["red car", "red apple", "old red car", "apple tree"]
    ranked = {
        tuple(bigrams(counted(tmp_path, "\n".join(order), max_keys=2), 1, tmp_path, 64))
        for order in itertools.permutations(lines)
    }
    assert len(ranked) == 1


def test_glosses_are_counted_on_demand(tmp_path):
    config = QueriesConfig()
    config.text.wordnet_glosses = True
    config.unigrams.counts = WordCounts.text
    wordnet = WordNet(tiny_wordnet.make(tmp_path / "dict"))
    counts = count_text(config, wordnet, tmp_path / "counts")
    assert dict(unigrams(counts, 2, tmp_path, 64))["dog"] == "unigrams:2"
