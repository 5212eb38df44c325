import pytest

from data_tools.config import SearxngConfig, SourcesConfig
from data_tools.search.base import SourceError
from data_tools.search.searxng import SearxngSource
from tests.data_tools.local_web import CONTACT
from tests.data_tools.search.json_server import answering


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr("data_tools.search.http.FIRST_BACKOFF_S", 0.01)


def result(number, **fields):
    return {
        "url": f"https://example.org/page{number}",
        "title": f"A cat &amp; {number}",
        "content": "Pets",
        "img_src": f"https://example.org/{number}.jpg",
        "thumbnail_src": "https://example.org/t.jpg",
        "resolution": "640 x 480",
        "img_format": "jpeg",
        "source": "example.org",
        "engine": "bing images",
        "engines": ["bing images"],
        "category": "images",
        "template": "images.html",
        "score": 1.0,
        "positions": [1],
        **fields,
    }


def body(results, unresponsive=()):
    return {
        "query": "cat",
        "results": results,
        "answers": [],
        "corrections": [],
        "infoboxes": [],
        "suggestions": [],
        "unresponsive_engines": [list(entry) for entry in unresponsive],
    }


def source_for(endpoint, **settings):
    config = SearxngConfig(enabled=True, endpoint=endpoint, requests_per_second=1e3, **settings)
    return SearxngSource(
        SourcesConfig(contact=CONTACT, timeout_s=10.0, max_attempts=3, searxng=config)
    )


def paged(pages):
    """Page n holds the n-th list, and nothing after the last."""

    def reply(params, headers):
        number = int(params["pageno"])
        return 200, body(pages[number - 1] if number <= len(pages) else []), {}

    return reply


def numbers(candidates):
    return [int(candidate.url.rpartition("/")[2][:-4]) for candidate in candidates]


def test_pages_are_followed_until_nothing_is_new():
    pages = [[result(1), result(2)], [result(2), result(3)], [result(3)], [result(4)]]
    with answering(paged(pages)) as server:
        found = list(source_for(server.endpoint).search("a cat", 100))
    assert numbers(found) == [1, 2, 3]
    assert [request["pageno"] for request in server.requests] == ["1", "2", "3"]
    assert server.paths[0] == "/search"
    assert server.requests[0] == {
        "q": "a cat",
        "categories": "images",
        "format": "json",
        "pageno": "1",
        "language": "en",
        "safesearch": "2",
    }
    first = found[0]
    assert (first.caption, first.page_url) == ("A cat & 1", "https://example.org/page1")
    assert (first.width, first.height) == (640, 480)
    assert (first.license, first.license_url, first.attribution) == ("", "", "")


def test_the_limit_and_the_last_page_end_it():
    pages = [[result(2 * n), result(2 * n + 1)] for n in range(50)]
    with answering(paged(pages)) as server:
        assert numbers(source_for(server.endpoint).search("cat", 3)) == [0, 1, 2]
        assert len(server.requests) == 2
        assert len(numbers(source_for(server.endpoint, max_pages=4).search("cat", 100))) == 8


def test_403_says_which_setting():
    with answering(lambda params, headers: (403, "<h1>Forbidden</h1>", {})) as server:
        with pytest.raises(SourceError, match="HTTP 403.*add json to search.formats in.*settings"):
            list(source_for(server.endpoint).search("cat", 10))


def test_429_says_which_setting():
    with answering(lambda params, headers: (429, "Too Many Requests", {})) as server:
        with pytest.raises(SourceError, match="HTTP 429.*server.limiter.*3 attempts"):
            list(source_for(server.endpoint).search("cat", 10))
    assert len(server.requests) == 3


def test_silent_engines_are_not_nothing_found():
    silent = [("bing images", "timeout"), ("flickr", "access denied")]
    with answering(lambda params, headers: (200, body([], silent), {})) as server:
        with pytest.raises(SourceError, match="bing images: timeout, flickr: access denied"):
            list(source_for(server.endpoint).search("cat", 10))
    with answering(lambda params, headers: (200, body([]), {})) as server:
        assert list(source_for(server.endpoint).search("cat", 10)) == []
    with answering(lambda params, headers: (200, body([result(1)], silent), {})) as server:
        assert numbers(source_for(server.endpoint).search("cat", 10)) == [1]


@pytest.mark.parametrize(
    ("fields", "url", "size"),
    [
        ({"img_src": "//example.org/1.jpg"}, "https://example.org/1.jpg", (640, 480)),
        ({"resolution": "1920×1080"}, "https://example.org/1.jpg", (1920, 1080)),
        ({"resolution": None}, "https://example.org/1.jpg", (None, None)),
        ({"img_src": "data:image/png;base64,AA"}, None, None),
        ({"img_src": ""}, None, None),
        ({"title": "", "content": ""}, None, None),
    ],
)
def test_odd_results(fields, url, size):
    with answering(lambda params, headers: (200, body([result(1, **fields)]), {})) as server:
        found = list(source_for(server.endpoint).search("cat", 10))
    assert [c.url for c in found] == ([url] if url else [])
    if url:
        assert (found[0].width, found[0].height) == size


@pytest.mark.parametrize("answer", ["<html>", "[1]"])
def test_answers_that_are_none(answer):
    with answering(lambda params, headers: (200, answer, {})) as server:
        with pytest.raises(SourceError, match="not JSON|no object"):
            list(source_for(server.endpoint).search("cat", 10))
