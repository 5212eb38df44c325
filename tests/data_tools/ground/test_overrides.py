"""Words for Hydra: names are checked, and a text arrives exactly as the shell passed it."""

from __future__ import annotations

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.config import CONFIGURATION as DATASET
from data_tools.ground.overrides import quoted_list, quoted_text
from pipeline.config.composition import CONFIGURATION as TRAIN

PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=30).filter(
    lambda text: "${" not in text and not re.fullmatch(r"(['\"]).*\1", text)
)
PATHS = [
    "my list (1).txt",
    "café.txt",
    "猫.txt",
    "x[1].txt",
    "a,b",
    "a=b",
    "a#b&c;d",
    "it's",
    "~/x",
]
PATHS += ["{a}", "a!b", "a@b", "null", "007", "1_0", "true", " a ", "a\\", "a\\'b", '"', "24:00:00"]


def read_by_hydra(words: list[str]) -> list[object]:
    return [word.value() for word in OverridesParser.create().parse_overrides(words)]


@pytest.mark.parametrize(
    ("configuration", "field"), [(DATASET, "queries.path"), (TRAIN, "data.manifest")]
)
@settings(max_examples=150, deadline=None)
@given(text=PRINTABLE)
def test_any_text_arrives(configuration, field, text):
    words, problems = configuration.quoted([f"{field}={text}"])
    assert not problems and read_by_hydra(words) == [text]


@pytest.mark.parametrize("text", PATHS)
def test_paths_that_hydra_would_misread(text: str) -> None:
    words, _ = TRAIN.quoted([f"run_dir={text}"])
    assert read_by_hydra(words) == [text]


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("[]", []),
        ("[a b,c]", ["a b", "c"]),
        ("['a b',\"c, d\"]", ["a b", "c, d"]),
        ("[pool/*.parquet,café/猫.txt]", ["pool/*.parquet", "café/猫.txt"]),
        ("[x=1,a;b]", ["x=1", "a;b"]),
    ],
)
def test_elements_of_a_list(text: str, elements: list[str]) -> None:
    words, problems = TRAIN.quoted([f"eval.datasets={text}"])
    assert not problems and read_by_hydra(words) == [elements]


@pytest.mark.parametrize("text", ["[it's]", "[a(1)]", "[a[1]]"])
def test_a_list_that_cannot_be_told_apart_names_the_quoting(text: str) -> None:
    assert quoted_list(text) is None
    _, (problem,) = TRAIN.quoted([f"eval.datasets={text}"])
    assert "eval.datasets=['one','two, three']" in problem


def test_what_is_quoted_or_interpolates_stays() -> None:
    for text in ("'a b'", '"a,b"', "${oc.env:HOME}/x"):
        assert quoted_text(text) == text
    words = ["train.lr=0.1", "model=vit_b_32", "+x=1", "~model", "train.steps=1,2"]
    assert TRAIN.quoted(words) == (words, [])


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("train.warmup_step=3", "do you mean train.warmup_steps?"),
        ("experimnt=demo", "do you mean experiment?"),
        ("zzzzzz=1", "there are "),
        ("+x=1", "there is no setting x"),
        ("model@x=tiny", "there is no setting model@x"),
        ("run_dir", "give name=value"),
        ("=5", "give name=value"),
        ("~train.lr", "no setting can be taken away"),
        ("hydra.run.dir=x", "leave it out"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(word: str, advice: str) -> None:
    (problem,) = TRAIN.unknown_names([word])
    assert problem.startswith(word) and advice in problem


def test_known_names_pass() -> None:
    words = ["train={lr: 1}", "train.lr=1", "cluster=local", "+train.lr=1", "++model=demo"]
    assert TRAIN.unknown_names([*words, "data.mixture.0.weight=2"]) == []
    assert DATASET.unknown_names(["source=[commons,pool]", "out_dir=x", "recipe=demo"]) == []
