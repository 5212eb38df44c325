from __future__ import annotations

import pytest

from data_tools.config import ClassifierConfig, CurateConfig, PackConfig, ReportConfig
from data_tools.config import curate as curate_config
from data_tools.config import pack as pack_config
from data_tools.config import report as report_config


def test_the_defaults_are_valid():
    assert curate_config.problems(CurateConfig()) == []
    assert pack_config.problems(PackConfig()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_aspect_ratio": 0.5}, "curate.max_aspect_ratio = 0.5: must be >= 1"),
        ({"min_caption_chars": 9, "max_caption_chars": 8}, "min_caption_chars = 9: is above"),
        ({"near_duplicate_bits": 9}, "curate.near_duplicate_bits = 9: give 0 to 8 of 64"),
        ({"max_contamination_bits": -1}, "curate.max_contamination_bits = -1: give 0 to 8"),
        ({"languages": ["English"]}, "curate.languages has 'English': give ISO 639 codes"),
        ({"unsafe_terms_path": "/no/terms"}, "unsafe_terms_path = /no/terms: no such file"),
        ({"evaluation_sets": ["/no/set"]}, "evaluation_sets has /no/set, which does not exist"),
        (
            {"classifiers": [ClassifierConfig(target="mine")]},
            "target = 'mine': give package.module",
        ),
        (
            {"classifiers": [ClassifierConfig(target="json:B", min_score=float("nan"))]},
            "min_score = nan for json:B: give a number",
        ),
        (
            {"classifiers": [ClassifierConfig(target="no.such.module:B")]},
            "target = 'no.such.module:B': no such module",
        ),
        ({"min_grey_std": float("nan")}, "curate.min_grey_std = nan: must be >= 0, and finite"),
        ({"processes": 0}, "curate.processes = 0: must be >= 1"),
    ],
)
def test_each_problem_names_field_value_and_fix(settings, told):
    (problem,) = curate_config.problems(CurateConfig(**settings))
    assert told in problem


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"samples_per_shard": None}, "give one of them"),
        ({"target_shard_bytes": 10**8}, "give one of them, and null for the other"),
        ({"samples_per_shard": 0}, "pack.samples_per_shard = 0: must be >= 1"),
        (
            {"samples_per_shard": None, "target_shard_bytes": 7},
            "pack.target_shard_bytes = 7: must be >= 100000",
        ),
        ({"processes": 0}, "pack.processes = 0: must be >= 1"),
    ],
)
def test_each_problem_of_packing(settings, told):
    (problem,) = pack_config.problems(PackConfig(**settings))
    assert told in problem


def test_what_would_fail_after_days_of_crawling_fails_at_the_start(tmp_path):
    (told,) = pack_config.problems(PackConfig(target_url="nowhere://bucket"))
    assert told.startswith("pack.target_url = nowhere://bucket: ") and "fsspec" in told
    assert pack_config.problems(PackConfig(target_url=str(tmp_path / "made-later"))) == []
    (told,) = report_config.problems(ReportConfig(class_names=["/no/names.txt"]))
    assert "report.class_names: '/no/names.txt' is not there" in told
