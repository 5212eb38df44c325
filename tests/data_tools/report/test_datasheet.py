"""The curation rules as the report says them."""

from __future__ import annotations

import dataclasses

import pytest

from data_tools.config import CaptionChoice, ClassifierConfig, CurateConfig
from data_tools.report.datasheet import rules_in_words

OFF = {
    "repair_text": False,
    "min_caption_chars": None,
    "max_caption_chars": None,
    "drop_file_names": False,
    "drop_boilerplate": False,
    "drop_mature": False,
    "min_side": None,
    "max_aspect_ratio": None,
    "min_grey_std": None,
    "drop_exact_duplicates": False,
    "near_duplicate_bits": None,
}
# A field, what it needs beside it, and the phrase that says it.
PHRASES = [
    ({"repair_text": True}, "mojibake, HTML entities and tags repaired in captions"),
    ({"min_caption_chars": 0}, "caption of at least 0 characters"),
    ({"max_caption_chars": 1500}, "caption of at most 1,500 characters"),
    ({"min_caption_words": 3}, "caption of at least 3 words"),
    ({"max_caption_words": 30}, "caption of at most 30 words"),
    ({"languages": ["en", "de"]}, "language en, de, where the caption has more than four words"),
    ({"drop_file_names": True}, "no file names as captions"),
    ({"drop_boilerplate": True}, "no boilerplate captions"),
    ({"drop_boilerplate": True, "boilerplate_path": "b.txt"}, "no boilerplate captions of b.txt"),
    ({"unsafe_terms_path": "{0}.txt"}, "no caption with a term of {0}.txt"),
    ({"drop_mature": True}, "nothing that its source flags as mature"),
    ({"min_side": 0}, "shorter side of at least 0 px"),
    ({"max_aspect_ratio": 2.5}, "aspect ratio of at most 2.5"),
    ({"min_grey_std": 2.0}, "standard deviation of grey levels of at least 2 of 255"),
    (
        {"evaluation_sets": ["a", "b"], "max_contamination_bits": 3},
        "no picture within 3 of 64 bits of a perceptual hash of one in a, b",
    ),
    ({"classifiers": [ClassifierConfig(target="m:{B}", min_score=4.5)]}, "at least 4.5 by m:{B}"),
]
SEVERAL = [
    ({"drop_exact_duplicates": True, "max_captions": 2}, "one sample for pictures of equal bytes"),
    (
        {"near_duplicate_bits": 0, "near_duplicate_colour": 7, "max_captions": 2},
        "one sample for pictures within 0 of 64 bits of a perceptual hash and 7 of 255 in each "
        "mean colour",
    ),
    (
        {"drop_exact_duplicates": True, "caption_choice": CaptionChoice.first, "max_captions": 2},
        "of such pictures the caption of the smallest uid, and at most 2 captions in all",
    ),
]


@pytest.mark.parametrize(("settings", "phrase"), PHRASES)
def test_a_rule_that_is_on_has_its_phrase_and_no_other(settings, phrase):
    assert rules_in_words(CurateConfig(**{**OFF, **settings})) == [phrase]


@pytest.mark.parametrize(("settings", "phrase"), SEVERAL)
def test_pictures_that_become_one_sample(settings, phrase):
    rules = rules_in_words(CurateConfig(**{**OFF, **settings}))
    assert phrase in rules and len(rules) == 2 and rules[1].endswith("at most 2 captions in all")


def test_no_rule_has_no_words():
    assert rules_in_words(CurateConfig(**OFF)) == []


def test_every_setting_of_curation_is_said():
    said = {name for settings, _ in PHRASES + SEVERAL for name in settings}
    fields = {field.name for field in dataclasses.fields(CurateConfig)}
    assert fields - said == {"processes"}
