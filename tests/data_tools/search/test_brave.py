import logging
import traceback

import pytest

from data_tools.config import BraveConfig, SourcesConfig
from data_tools.search.base import SourceError, SourceStopped
from data_tools.search.brave import BraveSource, heed
from data_tools.search.rates import RateLimiter
from data_tools.tables.schema import DataError
from tests.data_tools.local_web import CONTACT
from tests.data_tools.search.json_server import answering

KEY = "BSA-secret-key"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", KEY)
    monkeypatch.setattr("data_tools.search.http.FIRST_BACKOFF_S", 0.01)


def result(number, **fields):
    return {
        "type": "image_result",
        "title": f"A <b>cat</b> &amp; {number}",
        "url": f"https://example.org/page{number}",
        "source": "example.org",
        "page_fetched": "2026-01-01T00:00:00Z",
        "thumbnail": {"src": "https://imgs.search.brave.com/x", "width": 200, "height": 150},
        "properties": {
            "url": f"https://example.org/{number}.jpg",
            "placeholder": "https://imgs.search.brave.com/p",
            "width": 640,
            "height": 480,
        },
        "meta_url": {"scheme": "https", "netloc": "example.org", "hostname": "example.org"},
        "confidence": "high",
        **fields,
    }


def body(results, offensive=False):
    query = {"original": "cat", "altered": None, "spellcheck_off": True}
    extra = {"might_be_offensive": offensive}
    return {"type": "images", "query": query, "results": results, "extra": extra}


def source_for(endpoint, folder=None, **settings):
    config = BraveConfig(
        enabled=True,
        endpoint=endpoint,
        permission="plan X",
        **{"requests_per_second": 1e3, **settings},
    )
    sources = SourcesConfig(contact=CONTACT, timeout_s=10.0, max_attempts=3, brave=config)
    return BraveSource(sources, folder)


def test_one_request_a_query():
    found = [result(n) for n in (1, 2, 2, 3)]
    with answering(lambda params, headers: (200, body(found), {})) as server:
        source = source_for(server.endpoint, country="DE")
        candidates = list(source.search('a "cat" -dog', 1000))
        assert len(list(source.search("cat", 2))) == 2
    assert [candidate.url[-5:] for candidate in candidates] == ["1.jpg", "2.jpg", "3.jpg"]
    first = candidates[0]
    assert (first.caption, first.page_url) == ("A cat & 1", "https://example.org/page1")
    assert (first.width, first.height, first.license, first.mature) == (640, 480, "", False)
    assert server.requests[0] == {
        "q": "a cat dog",
        "count": "200",
        "country": "DE",
        "search_lang": "en",
        "safesearch": "strict",
        "spellcheck": "false",
    }
    assert server.headers[0]["x-subscription-token"] == KEY
    assert server.requests[1]["count"] == "2"


def test_a_query_is_cut_to_400_characters_and_50_words():
    with answering(lambda params, headers: (200, body([]), {})) as server:
        source = source_for(server.endpoint)
        list(source.search("cats " * 60, 10))
        list(source.search("a-long-word " * 45, 10))
        list(source.search("** ?", 10))
    words, chars = (request["q"] for request in server.requests)
    assert len(words.split()) == 50
    assert 380 < len(chars) <= 400 and chars.endswith("a-long-word")


def test_what_might_offend_is_marked():
    with answering(lambda params, headers: (200, body([result(1)], True), {})) as server:
        (found,) = source_for(server.endpoint).search("cat", 10)
    assert found.mature


@pytest.mark.parametrize(
    "odd",
    [
        3,
        {},
        {"title": "x", "properties": None},
        {"title": "x", "properties": {"url": "data:image/png;base64,AAAA"}},
        {"title": None, "properties": {"url": "https://x.org/a.jpg"}},
    ],
)
def test_results_without_image_or_title_are_passed_over(odd):
    with answering(lambda params, headers: (200, body([odd]), {})) as server:
        assert list(source_for(server.endpoint).search("cat", 10)) == []


def limits(policy, remaining, reset):
    return {
        "X-RateLimit-Limit": "1, 15000",
        "X-RateLimit-Policy": policy,
        "X-RateLimit-Remaining": remaining,
        "X-RateLimit-Reset": reset,
    }


class Recorder(RateLimiter):
    def __init__(self):
        super().__init__(1000.0)
        self.pauses, self.adopted = [], []

    def pause(self, seconds):
        self.pauses.append(seconds)

    def adopt(self, quotas):
        self.adopted.append([(q.num_requests, q.window_s, q.used) for q in quotas])


@pytest.mark.parametrize(
    ("headers", "pauses", "adopted"),
    [
        # the second is used up, the month is not
        (
            limits("1;w=1, 15000;w=2592000", "0, 14523", "1, 1419704"),
            [1.0],
            [(15000, 2592000.0, 477)],
        ),
        (
            limits("20;w=1, 15000;w=2592000", "19, 0", "1, 1419704"),
            [1419704.0],
            [(15000, 2592000.0, 15000)],
        ),
        (limits("20;w=1, 15000;w=2592000", "19, 5", "1, 1419704"), [], [(15000, 2592000.0, 14995)]),
        # a limit of 0 is none
        (limits("20;w=1, 0;w=2592000", "19, 0", "1, 1419704"), [], []),
        (limits("soon", "", "?"), [], []),
        ({}, [], []),
    ],
)
def test_rate_headers_have_two_windows(headers, pauses, adopted):
    limiter = Recorder()
    heed(headers, limiter)
    assert limiter.pauses == pauses
    assert limiter.adopted == ([adopted] if adopted else [])


def test_a_month_that_is_used_up_stops_the_source_over_runs(tmp_path):
    headers = limits("50;w=1, 15000;w=2592000", "49, 0", "1, 1419704")
    with answering(lambda params, headers_: (200, body([result(1)]), headers)) as server:
        assert len(list(source_for(server.endpoint, tmp_path).search("cat", 10))) == 1
        for source in (source_for(server.endpoint, tmp_path) for _ in range(2)):
            with pytest.raises(SourceStopped, match="asked again in 14197"):
                list(source.search("dog", 10))
    assert len(server.requests) == 1


def test_429_with_the_wait_in_its_windows():
    """No Retry-After: X-RateLimit-Reset says how long."""
    answers = [
        (
            429,
            {"type": "ErrorResponse"},
            limits("1;w=1, 15000;w=2592000", "0, 14523", "1, 1419704"),
        ),
        (429, {"type": "ErrorResponse"}, {}),
        (200, body([result(1)]), {}),
    ]
    pending = list(answers)
    with answering(lambda params, headers: pending.pop(0)) as server:
        source = source_for(server.endpoint)
        pauses, pause = [], source._client.limiter.pause
        source._client.limiter.pause = lambda seconds: (pauses.append(seconds), pause(0.0))
        assert len(list(source.search("cat", 10))) == 1
    assert pauses == [1.0]
    assert source.counts() == {"requests": 3, "retries": 2}


def test_a_key_that_is_refused_stops_the_source():
    with answering(
        lambda params, headers: (401, {"detail": "SUBSCRIPTION_TOKEN_INVALID"}, {})
    ) as server:
        with pytest.raises(
            SourceStopped, match="BRAVE_API_KEY is refused: HTTP 401.*TOKEN_INVALID"
        ):
            list(source_for(server.endpoint).search("cat", 10))


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (422, {"error": {"detail": "Unable to validate request parameter(s)"}}, "HTTP 422.*Unable"),
        (402, "Your plan has ended", "HTTP 402: Your plan has ended"),
        (200, {"type": "images"}, "no list of results"),
        (200, "[]", "no list of results"),
    ],
)
def test_refusals_are_shown(status, answer, told):
    with answering(lambda params, headers: (status, answer, {})) as server:
        with pytest.raises(SourceError, match=told):
            list(source_for(server.endpoint).search("cat", 10))


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", "  ")
    with pytest.raises(DataError, match="^BRAVE_API_KEY is not set: source=brave needs a key"):
        source_for("http://127.0.0.1:9/")


def test_the_key_is_never_shown(caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with answering(lambda params, headers: (400, f"bad token {KEY}", {})) as server:
        source = source_for(server.endpoint, tmp_path)
        with pytest.raises(SourceError) as error:
            list(source.search("cat", 10))
    told = "".join(traceback.format_exception(error.value))
    files = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "bad token [hidden]" in told
    assert KEY not in told + caplog.text + files + str(source.settings)
