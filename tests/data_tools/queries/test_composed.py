import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.config.queries import ComposedConfig
from data_tools.queries import composed
from data_tools.queries.composed import Grid, phrases
from data_tools.queries.wordnet import Noun, WordNet
from data_tools.tables.schema import DataError
from tests.data_tools.queries import tiny_wordnet

COLOURS = ["red", "green", "blue"]
THINGS = ["car", "house", "box", "cup"]


def plain(*templates, **words):
    config = ComposedConfig(templates=list(templates), words=words)
    return [phrase for phrase, _ in phrases(config, 0, None)]


def test_a_grid_gives_every_combination_once():
    found = plain("{colour} {thing}", colour=COLOURS, thing=THINGS)
    assert sorted(found) == sorted(f"{a} {b}" for a, b in itertools.product(COLOURS, THINGS))


def test_the_order_is_a_hash_of_the_words_and_of_the_seed():
    found = plain("{colour} {thing}", colour=COLOURS, thing=THINGS)
    assert found == plain("{colour} {thing}", colour=COLOURS[::-1], thing=THINGS[::-1])
    config = ComposedConfig(templates=["{colour} {thing}"])
    config.words = {"colour": COLOURS, "thing": THINGS}
    other = [phrase for phrase, _ in phrases(config, 1, None)]
    assert sorted(other) == sorted(found) and other != found


def test_a_word_more_does_not_change_the_choice_among_the_others():
    found = plain("{colour} {thing}", colour=COLOURS, thing=THINGS)
    more = plain("{colour} {thing}", colour=COLOURS, thing=[*THINGS, "dog"])
    assert [phrase for phrase in more if "dog" not in phrase] == found


@settings(max_examples=12, deadline=None)
@given(st.integers(20, 200), st.integers(2, 9), st.integers(0, 2**63))
def test_slices_and_chunks_change_nothing(slice_size, chunk, seed):
    words = {
        "a": [Noun(f"a{n}", None) for n in range(7)],
        "b": [Noun(f"b{n}", None) for n in range(9)],
    }
    grid = Grid("{a} {b} {a}", words, seed)
    whole = list(grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composed, "SLICE", slice_size)
        patch.setattr(composed, "CHUNK", chunk * 16)
        assert list(grid) == whole
    assert len(whole) == 7 * 9 * 6  # all but "a1 b2 a1"


def test_a_large_grid_is_not_made_to_be_asked_for_a_little():
    words = {name: [Noun(f"{name}{n}", None) for n in range(1500)] for name in "ab"}
    found = list(itertools.islice(Grid("{a} {b}", words, 0), 1000))
    assert len(set(found)) == 1000
    # the hash spreads over both lists
    assert len({phrase.split()[0] for phrase in found}) > 500


def test_templates_take_turns_and_small_grids_leave_their_share():
    found = plain("{colour} {thing}", "very {colour}", colour=COLOURS, thing=THINGS)
    assert [phrase.startswith("very") for phrase in found[:6]] == [False, True] * 3
    assert len(found) == 15


def test_nouns_come_with_their_hypernyms(tmp_path):
    wordnet = WordNet(tiny_wordnet.make(tmp_path))
    config = ComposedConfig(
        templates=["a photo of {noun}, a type of {hypernym}", "{colour} {artifact}"],
        words={"colour": ["red"]},
        noun_categories=["animal", "tops"],
    )
    found = dict(phrases(config, 0, wordnet))
    # the root has no hypernym, and is no part of the sentence
    assert set(found) == {
        "a photo of animal, a type of entity",
        "a photo of dog, a type of animal",
        "red crane",
        "red machine",
        "red fire engine",
    }
    assert found["red crane"] == "composed:{colour} {artifact}"
    config.noun_max_words = 1
    assert "red fire engine" not in dict(phrases(config, 0, wordnet))


def test_no_word_stands_twice():
    assert plain("{colour} {thing}", colour=["red"], thing=["red wine", "wine"]) == ["red wine"]


def test_rare_nouns_can_be_left_out(tmp_path):
    wordnet = WordNet(tiny_wordnet.make(tmp_path))
    config = ComposedConfig(templates=["old {artifact}"], noun_min_zipf=3.8)
    # as words: crane 3.9, machine 4.9, fire engine 4.7, which is 3.7 for two words
    assert set(dict(phrases(config, 0, wordnet))) == {"old crane", "old machine"}
    config.noun_min_zipf = 7.0
    with pytest.raises(DataError, match="no noun of the category artifact.*noun_min_zipf = 7.0"):
        list(phrases(config, 0, wordnet))
