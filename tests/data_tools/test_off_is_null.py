"""Off is null, and data folders that were made when it was 0 or an empty text go on."""

from __future__ import annotations

import pytest

from data_tools.config import (
    ConfigError,
    CrawlConfig,
    DatasetJob,
    PoolConfig,
    data_settings,
    fingerprint,
    load_job,
)

OFF = (
    "balance.max_per_query",
    "crawl.min_bytes_per_s",
    "crawl.requests_per_host_per_s",
    "sources.commons.thumbnail_width",
)
NUMBERS = (
    *OFF,
    "balance.target_pairs",
    "balance.tail_share",
    "queries.total",
    "queries.wordnet.limit",
    "queries.unigrams.limit",
    "queries.bigrams.limit",
    "queries.titles.limit",
    "queries.composed.limit",
    "queries.composed.noun_min_zipf",
)
TEXTS = (
    "pack.target_url",
    "curate.boilerplate_path",
    "curate.unsafe_terms_path",
    "sources.pool.width_column",
    "sources.pool.height_column",
    "sources.pool.license_column",
    "sources.pool.page_url_column",
    "sources.pool.mature_column",
    "sources.pool.license",
    "sources.pool.records_field",
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.txt").write_text("cat\n")
    words = ["queries.path=q.txt", "out_dir=d", "source=[commons,pool]"]
    words += ["sources.pool.paths=[pool.csv]", "sources.contact=me@example.org"]
    return lambda *more: load_job([*words, *more])


def test_null_is_hashed_as_what_meant_off_before(load):
    """Computed by the version before, with 0 in the place of null."""
    job = load("balance.target_pairs=5", *(f"{name}=null" for name in OFF))
    assert fingerprint(data_settings(job)) == "a2d26375aad9a1ff"
    assert fingerprint(job.sources.pool) == "4216d6c76d9784a0"
    assert fingerprint(job.crawl) == "a3ef933682541ad5"
    assert fingerprint(PoolConfig()) == "bc7e37cbbcdae38f"
    assert fingerprint(CrawlConfig()) == "bf182133b60fef9e"


def test_folders_of_another_default_of_the_thumbnails_go_on(load):
    """Computed by the version whose default was 512."""
    assert fingerprint(data_settings(load())) == "0dfac5343a079ef4"
    assert (
        fingerprint(data_settings(load("sources.commons.thumbnail_width=250")))
        == "f65955a107c5b297"
    )


@pytest.mark.parametrize(
    ("width", "nearest"), [(512, "500 or 960"), (1, "20"), (4000, "3840"), (300, "250 or 330")]
)
def test_thumbnails_that_commons_does_not_make_are_refused(load, width, nearest):
    with pytest.raises(ConfigError, match=f"thumbnail_width = {width}: .* give {nearest}; null"):
        load(f"sources.commons.thumbnail_width={width}")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_meant_off_is_refused_with_the_word_that_means_it(load, name):
    with pytest.raises(ConfigError, match=rf"{name} = 0.*; null "):
        load(f"{name}=0")


@pytest.mark.parametrize("name", TEXTS)
def test_an_empty_text_is_refused_with_the_word_that_means_off(load, name):
    with pytest.raises(ConfigError, match=rf"{name} = ''.*; null "):
        load(f"{name}=''")


@pytest.mark.parametrize("name", [*NUMBERS, *TEXTS])
def test_null_is_taken(load, name):
    job: object = load(*(["balance.target_pairs=5"] if name == OFF[0] else []), f"{name}=null")
    for part in name.split("."):
        job = getattr(job, part)
    assert job is None


def test_every_field_that_may_be_null_says_what_null_does():
    from data_tools.ground.field_docs import field_docs
    from pipeline.config import TrainJob

    for cls in classes_below(DatasetJob) | classes_below(TrainJob):
        for name, field in cls.__dataclass_fields__.items():
            if field.default is None and "None" in str(field.type):
                assert "null" in field_docs(cls)[name].lower(), f"{cls.__name__}.{name}"


def classes_below(cls: type) -> set[type]:
    found = {cls}
    for field in cls.__dataclass_fields__.values():
        if isinstance(field.type, type) and hasattr(field.type, "__dataclass_fields__"):
            found |= classes_below(field.type)
    return found
