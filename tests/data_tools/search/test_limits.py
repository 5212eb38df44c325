"""Which servers may be asked, and what must be said first."""

import itertools

import pytest

from data_tools.build import chained
from data_tools.config import ConfigError, SourcesConfig, data_settings, fingerprint, load_job
from data_tools.config import sources as sources_config
from data_tools.config.servers import PERMISSION_NEEDED
from data_tools.search.limits import limits
from data_tools.search.stage import SERVERS, card_facts, search_sources
from data_tools.tables.schema import DataError, DatasetPaths


@pytest.fixture
def job(tmp_path):
    (tmp_path / "queries.txt").write_text("cat\n")

    def load(*overrides):
        return load_job(
            [
                f"queries.path={tmp_path}/queries.txt",
                f"out_dir={tmp_path}/out",
                "sources.contact=tests@example.org",
                *overrides,
            ]
        )

    return load


def test_data_folders_of_earlier_versions_keep_their_fingerprints(job):
    """Computed when sources.pixabay and sources.unsplash were settings still."""
    loaded = job("source=commons")
    assert fingerprint(data_settings(loaded)) == "1bedab3edf6dbde0"
    chains = {stage.name: chain for stage, chain in itertools.islice(chained(loaded), 3)}
    assert chains["search"] == "40e0230f972dc16f"


@pytest.mark.parametrize("source", list(PERMISSION_NEEDED))
def test_servers_that_must_be_asked_for_permission(job, source):
    with pytest.raises(ConfigError) as error:
        job(f"source={source}")
    told = str(error.value)
    assert f"sources.{source}.permission is empty" in told
    assert PERMISSION_NEEDED[source] in told
    granted = f"sources.{source}.permission='J. Doe of {source}, 2026-11-01: 1M works'"
    loaded = job(f"source={source}", granted)
    (fact,) = card_facts(loaded.sources)
    assert fact.startswith(f"{source}: https://") and "J. Doe of " in fact


def test_searxng_needs_an_address(job):
    with pytest.raises(ConfigError, match="sources.searxng.endpoint is not given"):
        job("source=searxng")
    loaded = job("source=searxng", "sources.searxng.endpoint=http://127.0.0.1:8080/")
    assert card_facts(loaded.sources) == ["searxng: http://127.0.0.1:8080/"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sources.openverse.endpoint=https://x.org/v1"], "must end with /"),
        (["sources.openverse.results_per_query=20000"], "give 1 to 10000"),
        (["sources.openverse.requests_per_second=0"], "must be >= 0.001"),
        (["sources.openverse.endpoint=ftp://x/"], "give an http.s. URL"),
        (["sources.max_wait_s=-1"], "sources.max_wait_s = -1.0: must be >= 0"),
        (["search.max_failed_queries=-1"], "search.max_failed_queries = -1"),
    ],
)
def test_values_that_cannot_be(job, overrides, told):
    with pytest.raises(ConfigError, match=told):
        job("source=openverse", "sources.openverse.permission=yes", *overrides)


def test_flickr_licence_ids_are_not_negative(job):
    with pytest.raises(ConfigError, match="sources.flickr.licenses = .4, -1.: give ids"):
        job("source=flickr", "sources.flickr.permission=yes", "sources.flickr.licenses=[4,-1]")


def test_all_together_in_a_fixed_order(job, tmp_path, monkeypatch):
    names = [server.name for server in SERVERS]
    assert names == ["commons", "openverse", "flickr", "brave", "searxng"]
    permissions = [f"sources.{name}.permission=yes" for name in PERMISSION_NEEDED]
    loaded = job(
        f"source=[{','.join(reversed(names))}]",
        "sources.searxng.endpoint=http://127.0.0.1:8080/",
        *permissions,
    )
    for variable in ("FLICKR_API_KEY", "BRAVE_API_KEY"):
        monkeypatch.setenv(variable, "x")
    for variable in ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET"):
        monkeypatch.delenv(variable, raising=False)
    paths = DatasetPaths(tmp_path / "out")
    sources = search_sources(loaded.sources, paths)
    assert [source.name for source in sources] == names == list(limits(loaded.sources))
    assert sources_config.servers_enabled(loaded.sources) == names
    for source in sources:
        source.close()
    monkeypatch.delenv("BRAVE_API_KEY")
    with pytest.raises(DataError, match="^BRAVE_API_KEY is not set"):
        search_sources(loaded.sources, paths)
    assert not paths.search_cursor.exists()


def test_no_setting_is_a_key():
    """Keys come from the environment: no field of the job could take one into config.yaml."""
    fields = set()
    for server in SERVERS:
        fields |= set(getattr(SourcesConfig(), server.name).__dataclass_fields__)
    assert not [name for name in fields if "key" in name or "secret" in name or "token" in name]
