import pytest

from data_tools.config import load_job
from data_tools.config.queries import (
    ComposedConfig,
    Lemmas,
    QueriesConfig,
    WordCounts,
    problems,
)
from tests.data_tools.queries import tiny_wordnet


def told(config):
    return "\n".join(problems(config))


def test_nothing_given_names_both_ways():
    assert told(QueriesConfig()) == (
        "queries.path is not given: add queries.path=FILE (one query a line), or queries=default"
    )


def test_every_problem_at_once(tmp_path):
    config = QueriesConfig(path=str(tmp_path / "gone*.txt"), total=-1, seed=-1)
    config.wordnet.lemmas = Lemmas.all
    config.wordnet.limit = -2
    config.unigrams.counts = WordCounts.text
    config.unigrams.min_count = 0
    config.bigrams.limit = -3
    config.bigrams.min_pair_count = 0
    config.titles.paths = [str(tmp_path / "views.txt")]
    config.titles.from_text = True
    config.titles.min_views = -1
    config.text.max_keys_in_memory = config.text.memory_limit_mib = config.text.num_processes = 0
    found = told(config)
    for problem in [
        "queries.total = -1: must be >= 1",
        "queries.seed = -1",
        "queries.wordnet.limit = -2",
        "queries.unigrams.min_count = 0: must be >= 1",
        "queries.bigrams.limit = -3",
        "queries.bigrams.min_pair_count = 0",
        "queries.titles.min_views = -1",
        "queries.text.max_keys_in_memory = 0",
        "queries.text.memory_limit_mib = 0: must be >= 64",
        "queries.text.num_processes = 0",
        "gone*.txt: no such file",
        "views.txt: no such file",
        "queries.wordnet.dict_dir = (not given): no such folder, needed by "
        "queries.wordnet.lemmas=all; apt-get install wordnet-base",
        "queries.text.paths is empty, needed by queries.unigrams.counts=text: add",
        "queries.titles.from_text: queries.text.paths is empty",
    ]:
        assert problem in found, problem


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{color} {noun}", r"unknown field(s) ['color']; known are ['act', 'animal'"),
        ("red things", "needs fields such as {noun}"),
        ("{noun", "each with both braces"),
        ("{noun} }", "each with both braces"),
        ("{noun!r}", "unknown field(s) ['noun!r']"),
        ("{}", "unknown field(s) ['']"),
        ("{hypernym}", "{hypernym} needs exactly one noun field"),
        ("{noun}, {animal} and {hypernym}", "{hypernym} needs exactly one noun field"),
    ],
)
def test_templates_that_cannot_be_filled(tmp_path, template, problem):
    config = QueriesConfig(total=10)
    config.wordnet.dict_dir = str(tmp_path)
    config.composed = ComposedConfig(templates=[template], noun_categories=["animal"])
    assert f"queries.composed.templates = {template!r}: " in told(config)
    assert problem in told(config)


def test_word_lists_and_categories(tmp_path):
    config = QueriesConfig()
    config.composed.templates = ["{noun}", "{colour} x"]
    config.composed.words = {"colour": ["red", " "], "animal": ["cat"]}
    found = told(config)
    assert "queries.composed.limit = null and queries.total = null" in found
    assert "queries.composed.noun_categories is empty" in found
    assert "words.colour = ['red', ' ']: give one word or more, none of them blank" in found
    assert "words.animal: the name stands for WordNet's nouns" in found
    assert "needed by the nouns of queries.composed.templates" in found
    config.composed.noun_categories = ["beasts"]
    assert "noun_categories = beasts: is none of ['act'" in told(config)


def test_word_lists_alone_need_no_wordnet():
    config = QueriesConfig(total=5)
    config.composed.templates = ["{colour} {thing}"]
    config.composed.words = {"colour": ["red"], "thing": ["car"]}
    assert problems(config) == []


def test_the_default_recipe_composes(tmp_path):
    folder = tiny_wordnet.make(tmp_path / "dict")
    job = load_job(
        [
            *("queries=default", f"queries.wordnet.dict_dir={folder}", f"out_dir={tmp_path}"),
            *("source=commons", "sources.contact=you@example.org", "queries.path=setup.cfg"),
        ]
    )
    assert job.queries.total == 500_000
    assert job.queries.wordnet.lemmas is Lemmas.heads
    assert job.queries.path == "setup.cfg"
