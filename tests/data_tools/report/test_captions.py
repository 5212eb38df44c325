from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_tools.report.captions import CaptionFacts, caption_facts, kind_sentence, words
from data_tools.report.charts import MAX_POINTS, _log_spaced
from data_tools.report.coverage import coverage, read_class_names
from data_tools.tables.schema import DataError

SENTENCE = "a dog on the sofa in the evening sun"
KEYWORDS = "dog, sofa, sunset, evening, furniture, animal"


def test_words_are_folded_and_cut():
    assert words("The dog's Red-car, 2nd_go!") == ["the", "dog's", "red", "car", "2nd", "go"]
    assert words("\u732b\u304c\u597d\u304d") == list("\u732b\u304c\u597d\u304d")
    assert words(" ... ") == []


def test_ngrams_are_counted():
    """a b a b: 4 words of which 2 are distinct; ab ba ab; aba bab; abab. And "a b" again."""
    facts = caption_facts(["a b a b", "A  b"])
    assert facts.ngrams == [(1, 6, 2), (2, 4, 2), (3, 2, 2), (4, 1, 1)]


def test_languages_are_counted_and_short_captions_have_none():
    facts = caption_facts([SENTENCE, SENTENCE, "dog", "der Hund liegt am Abend auf dem Sofa"])
    assert facts.languages == [("en", 2), ("", 1), ("de", 1)]
    assert (facts.num_captions, facts.english, facts.sentences) == (4, 2, 2)


@pytest.mark.parametrize(
    ("sentences", "told"),
    [
        (10, "They are mostly phrases and sentences: 100% of the 10"),
        (6, "They are mostly phrases and sentences: 60%"),
        (5, "They are bags of words and sentences by halves: 50%"),
        (4, "They are mostly bags of words: 40%"),
        (0, "They are mostly bags of words: 0%"),
    ],
)
def test_bags_of_words_or_sentences(sentences, told):
    facts = caption_facts([SENTENCE] * sentences + [KEYWORDS] * (10 - sentences))
    assert facts.english == 10
    assert kind_sentence(facts).startswith(told)


def test_other_languages_are_not_judged():
    facts = CaptionFacts(num_captions=100, english=9, sentences=9)
    assert "not judged: 9 of 100" in kind_sentence(facts)
    assert "not judged" not in kind_sentence(replace(facts, english=10))
    assert "not judged" in kind_sentence(replace(facts, num_captions=0, english=0))


def test_class_names_are_read_as_lists_have_them(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffgreat_white_shark\r\n\r\n  hen \n".encode())
    assert read_class_names(file) == ["great white shark", "hen"]
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_class_names(file)
    file.write_text(" \n_\n")
    with pytest.raises(DataError, match="has no class name"):
        read_class_names(file)


def test_coverage_lists_the_first_missing_names(tmp_path):
    (tmp_path / "many.txt").write_text("".join(f"name {n}\n" for n in range(80)))
    packed = np.array([0, 3])
    (found,) = coverage([tmp_path / "many.txt"], {"name 0": 0, "name 79": 1}, packed)
    assert (found.num_classes, found.covered, found.with_pairs) == (80, 2, 1)
    assert found.missing == [f"name {n}" for n in range(1, 51)]


def test_a_curve_of_500000_ranks_has_few_points():
    shown = _log_spaced(500_000)
    assert len(shown) <= MAX_POINTS and shown[0] == 0 and shown[-1] == 499_999
    assert (np.diff(shown) > 0).all()
    assert _log_spaced(3).tolist() == [0, 1, 2] and len(_log_spaced(0)) == 0
