import logging
import traceback

import pytest

from data_tools.config import OpenverseConfig, SourcesConfig
from data_tools.demo.server import Picture, Scripted
from data_tools.search.base import SourceError, SourceStopped
from data_tools.search.openverse import OpenverseSource, caption_of
from data_tools.tables.schema import DataError
from tests.data_tools.local_web import CONTACT, animals, png
from tests.data_tools.search.doubles.openverse import Openverse
from tests.data_tools.search.doubles.replies import PageFaults
from tests.data_tools.search.doubles.server import serve

KEYS = {"OPENVERSE_CLIENT_ID": "demo-client-id", "OPENVERSE_CLIENT_SECRET": "demo-client-secret"}
GENEROUS = {"anon_burst": "500/min", "anon_sustained": "9000/day"}
BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def sources_for(endpoint, max_attempts=3, **settings):
    config = OpenverseConfig(
        enabled=True,
        endpoint=endpoint,
        permission="granted by the tests",
        **{"requests_per_second": 1000.0, **settings},
    )
    return SourcesConfig(
        contact=CONTACT, timeout_s=10.0, max_attempts=max_attempts, openverse=config
    )


@pytest.fixture
def openverse_source():
    opened = []

    def make(server, folder=None, **settings):
        opened.append(OpenverseSource(sources_for(server.openverse.endpoint, **settings), folder))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def cats(count):
    return [Picture(f"Cat {n:03d}.png", PNG, "a cat", license_url=BY_SA) for n in range(count)]


PNG = png()


def names(candidates):
    return [candidate.url.rpartition("/")[2] for candidate in candidates]


def pages_asked(server):
    return [(request["page"], request["page_size"]) for request in server.openverse.requests]


def test_fields_of_a_candidate(openverse_source):
    picture = Picture(
        "Red_cat 1.png",
        png(width=800, height=600),
        description="<p>A <b>cat</b> on a roof</p>",
        license_url=BY_SA,
        artist="Ann",
    )
    with serve([picture]) as server:
        (found,) = openverse_source(server).search("cat", 10)
        assert found.url == f"http://{server.hosts[0]}{picture.path}"
    # tags that the title has are left out, and so is the classifier's guess
    assert found.caption == "Red_cat 1 (on, roof)"
    assert (found.license, found.license_url) == ("CC BY-SA 4.0", BY_SA)
    assert found.attribution == "Ann"
    assert found.page_url.endswith("/wiki/File:Red_cat_1.png")
    assert (found.width, found.height, found.mature) == (800, 600, False)


def test_anonymous_pages_of_20_up_to_240(openverse_source):
    pictures = cats(300)
    with serve(pictures, openverse=Openverse(pictures, throttles=GENEROUS)) as server:
        found = names(openverse_source(server).search("cat", 10_000))
    assert found == [f"Cat_{number:03d}.png" for number in range(240)]
    assert pages_asked(server) == [(str(page), "20") for page in range(1, 13)]
    assert server.openverse.refused == []


def test_one_page_with_a_key(openverse_source, key):
    with serve(cats(300)) as server:
        source = openverse_source(server)
        assert len(names(source.search("cat", 10_000))) == 240
        assert len(names(source.search("cat", 30))) == 30
    assert pages_asked(server) == [("1", "240"), ("1", "30")]
    assert source.counts() == {"requests": 3, "retries": 0}  # one for the token


def test_more_than_240_by_grant(openverse_source, key, monkeypatch):
    monkeypatch.setattr("tests.data_tools.search.doubles.openverse.MAX_RESULTS", 700)
    with serve(cats(650)) as server:
        found = names(openverse_source(server, results_per_query=600).search("cat", 10_000))
    assert len(found) == len(set(found)) == 600
    assert pages_asked(server) == [("1", "500"), ("2", "500")]


def test_items_that_come_again_and_totals_that_shrink(openverse_source):
    pictures = cats(70)
    faults = PageFaults(repeated=5, shrinks_by=30, text_totals=True)
    with serve(pictures, openverse=Openverse(pictures, faults)) as server:
        found = names(openverse_source(server).search("cat", 10_000))
    assert found == [f"Cat_{number:03d}.png" for number in range(70)]


def test_null_titles_leave_the_tags(openverse_source):
    pictures = [Picture("Cat.png", PNG, "a grey cat"), Picture("Cat 2.png", PNG, "")]
    with serve(pictures, openverse=Openverse(pictures, PageFaults(null_title_every=1))) as server:
        found = list(openverse_source(server).search("cat", 10))
    assert [candidate.caption for candidate in found] == ["a, grey, cat"]


@pytest.mark.parametrize("retry_after_s", [None, 0])
def test_429_with_and_without_retry_after(openverse_source, retry_after_s, monkeypatch):
    monkeypatch.setattr("data_tools.search.http.FIRST_BACKOFF_S", 0.01)
    pictures = cats(50)
    faults = PageFaults(throttle_every=2, retry_after_s=retry_after_s)
    with serve(pictures, openverse=Openverse(pictures, faults)) as server:
        source = openverse_source(server)
        assert len(names(source.search("cat", 100))) == 50
    assert server.openverse.refused == ["throttle"] * 2
    assert source.counts() == {"requests": 5, "retries": 2}


def test_the_servers_own_rates_are_kept(openverse_source, tmp_path):
    """Told in headers: 4 a minute instead of the documented 5 an hour. The fifth is not asked."""
    pictures = cats(5)
    throttles = {"anon_burst": "4/min", "anon_sustained": "200/day"}
    with serve(pictures, openverse=Openverse(pictures, throttles=throttles)) as server:
        source = openverse_source(server, tmp_path)
        source._images.limiter.max_wait_s = 1.0
        for number in range(4):
            assert len(names(source.search(f"cat {number:03d}", 10))) == 1
        with pytest.raises(SourceStopped, match="4 requests a minute is used up"):
            list(source.search("cat 004", 10))
    assert server.openverse.refused == []
    assert len(server.openverse.requests) == 4


def test_the_documented_rate_holds_over_runs(openverse_source, tmp_path):
    """5 an hour without a key, where no header says otherwise."""
    with serve(cats(5)) as server:
        for number in range(5):
            list(openverse_source(server, tmp_path).search(f"cat {number:03d}", 10))
        with pytest.raises(SourceStopped, match="5 requests an hour is used up.*asked again in"):
            list(openverse_source(server, tmp_path).search("cat", 10))
    assert len(server.openverse.requests) == 5


def test_a_query_of_more_pages_than_the_quota_goes_on_where_it_was(openverse_source, tmp_path):
    """12 pages at 5 an hour: three runs, and no page is asked twice."""
    with serve(cats(300)) as server:
        for _ in range(2):
            with pytest.raises(SourceStopped, match="5 requests an hour"):
                list(openverse_source(server, tmp_path).search("cat", 10_000))
            (tmp_path / "openverse.rates").unlink()  # an hour later
        found = names(openverse_source(server, tmp_path).search("cat", 10_000))
    assert found == [f"Cat_{number:03d}.png" for number in range(240)]
    assert pages_asked(server) == [(str(page), "20") for page in range(1, 13)]


def test_another_program_with_the_same_key_is_counted(openverse_source):
    """The server counts 3 of 4 before our first request."""
    pictures = cats(5)
    openverse = Openverse(pictures, throttles={"anon_burst": "4/hour"})
    with serve(pictures, openverse=openverse) as server:
        for _ in range(3):
            openverse.images({"q": "cat"}, "")
        source = openverse_source(server)
        list(source.search("cat", 10))
        with pytest.raises(SourceStopped, match="4 requests an hour"):
            list(source.search("dog", 10))
    assert openverse.log.refused == []


def test_a_page_size_that_is_refused_is_told(openverse_source, monkeypatch):
    """As when a token is lost on the way: the server takes us for anonymous."""
    with serve(cats(50)) as server:
        source = openverse_source(server)
        monkeypatch.setattr(source, "_limits", type(source._limits)(50, 240, requests_per_s=1000.0))
        with pytest.raises(SourceError, match="HTTP 401.*may not exceed 20 for anonymous"):
            list(source.search("cat", 50))
    assert server.openverse.refused == ["page_size"]


def test_a_token_that_ends_is_replaced(openverse_source, key):
    pictures = cats(5)
    openverse = Openverse(pictures)
    with serve(pictures, openverse=openverse) as server:
        source = openverse_source(server)
        assert len(names(source.search("cat", 10))) == 5
        openverse.tokens.clear()
        assert len(names(source.search("cat", 10))) == 5
    assert openverse.log.refused == ["token"]


def test_a_token_is_renewed_before_its_end(openverse_source, key, monkeypatch):
    pictures = cats(5)
    openverse = Openverse(pictures)
    openverse.token_lasts_s = 30  # within the margin: never fresh enough
    with serve(pictures, openverse=openverse) as server:
        source = openverse_source(server)
        for _ in range(3):
            list(source.search("cat", 10))
    assert len(openverse.tokens) == 3
    assert openverse.log.refused == []


def test_keys_that_are_refused_stop_the_source(openverse_source, key, monkeypatch):
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "wrong&secret=1")
    with serve(cats(5)) as server:
        with pytest.raises(SourceStopped, match="OPENVERSE_CLIENT_SECRET are refused: HTTP 401"):
            list(openverse_source(server).search("cat", 10))
    assert server.openverse.requests == []


@pytest.mark.parametrize("missing", list(KEYS))
def test_one_key_of_two_names_the_other(key, missing, monkeypatch):
    monkeypatch.delenv(missing)
    with serve(cats(1)) as server:
        with pytest.raises(DataError, match=f"^{missing} is not set"):
            OpenverseSource(sources_for(server.openverse.endpoint))


@pytest.mark.parametrize("value", ["two words", "key\nX-Evil: 1", "schlüssel"])
def test_a_key_that_is_none_is_not_shown(key, monkeypatch, value):
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", value)
    with pytest.raises(DataError) as error:
        OpenverseSource(sources_for("http://127.0.0.1:9/"))
    assert "OPENVERSE_CLIENT_SECRET is no key" in str(error.value)
    assert value not in str(error.value)


def test_keys_and_tokens_are_never_shown(openverse_source, key, caplog, tmp_path):
    """Not by a server that repeats them, not in a log at DEBUG, not in a file."""
    caplog.set_level(logging.DEBUG)
    pictures = cats(5)
    openverse = Openverse(pictures)
    with serve(pictures, openverse=openverse) as server:
        source = openverse_source(server, tmp_path, max_attempts=1)
        list(source.search("cat", 10))
        (token,) = openverse.tokens
        told = []
        for status in (400, 429, 503, 200, 301):
            echo = f"you sent Bearer {token} by demo-client-secret of demo-client-id"
            openverse.log.scripted.append(Scripted(status, echo, {"Location": f"/?{token}"}))
            with pytest.raises(SourceError) as error:
                list(source.search(f"cat {status}", 10))
            told.append("".join(traceback.format_exception(error.value)))
    files = [file.read_text() for file in tmp_path.iterdir()]
    assert len(files) == 2
    everything = "\n".join([*told, caplog.text, *files])
    assert "you sent Bearer [hidden] by [hidden] of [hidden]" in everything
    for hidden in (token, "demo-client-secret", "demo-client-id"):
        assert hidden not in everything
    assert not any("demo-client" in str(value) for value in source.settings.values())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Scripted(451, "Our terms changed on 1 June"), "HTTP 451: Our terms changed on 1 June"),
        (Scripted(410, "v1 is gone"), "HTTP 410: v1 is gone"),
        (Scripted(403, "blocked"), "HTTP 403: blocked"),
        (Scripted(200, "<html>maintenance</html>"), "not JSON.*maintenance"),
        (Scripted(200, "[]"), "no list of results"),
        (Scripted(200, '{"results": 3}'), "no list of results"),
    ],
)
def test_refusals_and_answers_that_are_none_are_shown(openverse_source, answer, told):
    with serve(cats(1)) as server:
        server.openverse.scripted.append(answer)
        with pytest.raises(SourceError, match=told):
            list(openverse_source(server).search("cat", 10))


@pytest.mark.parametrize(
    "result",
    [
        "7",
        "{}",
        '{"id": "a", "title": "cat", "url": "file:///etc/passwd"}',
        '{"id": "a", "title": null, "tags": null, "url": "http://x.org/a.jpg"}',
        '{"id": "a", "title": 7, "tags": [{}, 3, {"name": null}], "url": "http://x.org/a.jpg"}',
    ],
)
def test_results_without_image_or_text_are_passed_over(openverse_source, result):
    with serve(cats(1)) as server:
        server.openverse.scripted.append(
            Scripted(200, f'{{"page_count": 1, "results": [{result}]}}')
        )
        assert list(openverse_source(server).search("cat", 10)) == []


def test_odd_fields_are_survived(openverse_source):
    result = (
        '{"url": "//x.org/a.jpg", "title": "cat \\ud83d", "license": "cc0", "width": "640", '
        '"license_version": "1.0", "height": -3, "tags": "none", "unstable__sensitivity": ["x"]}'
    )
    with serve(cats(1)) as server:
        server.openverse.scripted.append(Scripted(200, f'{{"results": [{result}]}}'))
        (found,) = openverse_source(server).search("cat", 10)
    assert (found.url, found.caption) == ("https://x.org/a.jpg", "cat ?")
    assert (found.license, found.width, found.height) == ("CC0 1.0", 640, None)
    assert found.mature


def test_a_server_without_end_ends(openverse_source, key):
    """Every page says that there are more, and holds the same item."""
    body = '{"page_count": 9999, "results": [{"id": "a", "title": "x", "url": "http://x.org/a"}]}'
    with serve(cats(1)) as server:
        server.openverse.scripted.extend([Scripted(200, body)] * 50)
        assert len(list(openverse_source(server, results_per_query=10_000).search("c", 10**6))) == 1
        assert len(server.openverse.scripted) == 30  # the server's own 20 pages


def test_a_long_query_is_cut_between_words(openverse_source):
    with serve(cats(1)) as server:
        list(openverse_source(server).search("cats " * 60, 10))
    (request,) = server.openverse.requests
    assert request["q"] == " ".join(["cats"] * 40)


def test_operators_alone_ask_nothing(openverse_source):
    with serve(animals()) as server:
        assert list(openverse_source(server).search('"" -', 10)) == []
    assert server.openverse.requests == []


def test_a_licence_type_is_asked_for(openverse_source):
    pictures = [
        Picture("Cat a.png", PNG, license_url=BY_SA),
        Picture("Cat b.png", PNG, license_url="https://creativecommons.org/licenses/by-nc/2.0/"),
    ]
    with serve(pictures) as server:
        found = openverse_source(server, license_type="commercial").search("cat", 10)
        assert [candidate.license for candidate in found] == ["CC BY-SA 4.0"]


@pytest.mark.parametrize(
    ("title", "tags", "caption"),
    [
        ("A cat", [], "A cat"),
        ("A cat", [("cat", None), ("roof", None), ("roof", None)], "A cat (roof)"),
        ("", [("cat", None), ("roof", 0.9)], "cat"),
        ("", [], ""),
    ],
)
def test_captions(title, tags, caption):
    told = [{"name": name, "accuracy": accuracy} for name, accuracy in tags]
    assert caption_of(title, told) == caption


def test_settings_tell_searches_apart():
    """Another cursor for another answer, and the same for another permission or pace."""

    def settings(**values):
        return OpenverseSource(sources_for("http://127.0.0.1:9/", **values)).settings

    assert settings() == settings(requests_per_second=3.0)
    assert settings() != settings(license_type="commercial")
