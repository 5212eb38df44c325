import json
import logging
import traceback

import pytest

from data_tools.config import FlickrConfig, SourcesConfig
from data_tools.demo.server import Picture, Scripted
from data_tools.search import flickr as flickr_module
from data_tools.search.base import SourceError, SourceStopped
from data_tools.search.flickr import FlickrSource, caption_of
from data_tools.tables.schema import DataError
from tests.data_tools.local_web import CONTACT, png
from tests.data_tools.search.doubles import flickr as emulated
from tests.data_tools.search.doubles.flickr import Flickr, upload_date
from tests.data_tools.search.doubles.replies import PageFaults
from tests.data_tools.search.doubles.server import serve

KEY = "demo-flickr-key"
BY = "https://creativecommons.org/licenses/by/2.0/"
PNG = png()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("FLICKR_API_KEY", KEY)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr("data_tools.search.http.FIRST_BACKOFF_S", 0.01)


def sources_for(endpoint, max_attempts=3, **settings):
    config = FlickrConfig(
        enabled=True,
        endpoint=endpoint,
        permission="granted by the tests",
        **{"requests_per_second": 1000.0, **settings},
    )
    return SourcesConfig(contact=CONTACT, timeout_s=10.0, max_attempts=max_attempts, flickr=config)


@pytest.fixture
def flickr_source():
    opened = []

    def make(server, folder=None, **settings):
        opened.append(FlickrSource(sources_for(server.flickr.endpoint, **settings), folder))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


@pytest.fixture
def small_windows(monkeypatch):
    """20 results a search, 5 a page: 60 pictures stand for 12,000."""
    monkeypatch.setattr(flickr_module, "RESULT_WINDOW", 20)
    monkeypatch.setattr("data_tools.search.limits.FLICKR_PAGE_SIZE", 5)
    return 20


def cats(count):
    return [Picture(f"Cat {n:03d}.png", PNG, "a cat", license_url=BY) for n in range(count)]


def names(candidates):
    return [candidate.url.rpartition("/")[2] for candidate in candidates]


def searches(server):
    return [r for r in server.flickr.requests if r["method"] == "flickr.photos.search"]


def test_fields_of_a_candidate(flickr_source):
    picture = Picture(
        "Red roof.png",
        png(width=1600, height=1200),
        description="<p>A <b>cat</b> &amp; its <a href='/x'>shadow</a></p>",
        license_url=BY,
        artist="Ann",
    )
    with serve([picture]) as server:
        (found,) = flickr_source(server).search("cat", 10)
    assert found.caption == "Red roof. A cat & its shadow"
    assert (found.license, found.license_url) == ("CC BY 2.0", BY)
    assert found.attribution == "Ann"
    assert found.page_url.startswith("https://www.flickr.com/photos/")
    assert (found.width, found.height) == (1600, 1200)
    assert found.url.endswith("/1024px-Red_roof.png")


def test_what_is_asked(flickr_source):
    with serve(cats(1)) as server:
        list(flickr_source(server).search("a cat -dog", 700))
    first, request = server.flickr.requests
    assert first["method"] == "flickr.photos.licenses.getInfo"
    # everything but 0, All Rights Reserved, as the server lists it
    assert request["license"] == ",".join(map(str, sorted(emulated.LICENSES)[1:]))
    assert request["text"] == "a cat dog"
    assert (request["sort"], request["safe_search"], request["media"]) == (
        "relevance",
        "1",
        "photos",
    )
    assert (request["per_page"], request["page"]) == ("500", "1")
    assert "min_upload_date" not in request


def test_the_users_licences_are_asked_for(flickr_source):
    pictures = [
        Picture("Cat a.png", PNG, license_url=BY),
        Picture("Cat b.png", PNG, license_url="https://creativecommons.org/publicdomain/zero/1.0/"),
        Picture("Cat c.png", PNG),
    ]
    with serve(pictures) as server:

        def licenses(**settings):
            found = flickr_source(server, **settings).search("cat", 10)
            return [candidate.license for candidate in found]

        assert licenses() == ["CC BY 2.0", "CC0 1.0"]
        assert licenses(licenses=[9]) == ["CC0 1.0"]
        assert licenses(licenses=[0, 4]) == ["CC BY 2.0", "All Rights Reserved"]


def test_licence_ids_are_looked_up_once(flickr_source):
    with serve(cats(3)) as server:
        source = flickr_source(server)
        for query in ("cat", "cat 000", "cat 001"):
            list(source.search(query, 10))
        assert source.counts() == {"requests": 4, "retries": 0}
    assert len(server.flickr.requests) - len(searches(server)) == 1


def test_an_unknown_licence_is_not_made_up(flickr_source):
    photo = {"id": "1", "title": "cat", "license": "99", "url_l": "http://x.org/a.jpg"}
    body = {"photos": {"pages": 1, "total": 1, "photo": [photo]}, "stat": "ok"}
    with serve(cats(1)) as server:
        source = flickr_source(server)
        list(source.search("cat", 1))
        server.flickr.scripted.append(Scripted(200, json.dumps(body)))
        (found,) = source.search("another", 1)
    assert (found.license, found.license_url) == ("", "")


def test_pages_are_followed_with_items_that_come_again_and_totals_that_shrink(
    flickr_source, small_windows
):
    pictures = cats(18)
    faults = PageFaults(repeated=2, shrinks_by=9, text_totals=True)
    with serve(pictures, flickr=Flickr(pictures, faults)) as server:
        found = names(flickr_source(server).search("cat", 1000))
    assert found == [f"Cat_{number:03d}.png" for number in range(18)]
    assert [request["page"] for request in searches(server)] == ["1", "2", "3", "4"]


def test_the_limit_ends_the_paging(flickr_source, small_windows):
    with serve(cats(18)) as server:
        assert len(names(flickr_source(server).search("cat", 7))) == 7
    assert [request["page"] for request in searches(server)] == ["1", "2"]


def test_no_page_beyond_the_window_is_asked(flickr_source, small_windows):
    """There the last page comes again and again."""
    pictures = cats(60)
    with serve(pictures, flickr=Flickr(pictures, result_window=20)) as server:
        found = names(flickr_source(server).search("cat", 20))
        beyond = server.flickr
    assert found == [f"Cat_{number:03d}.png" for number in range(20)]
    assert [request["page"] for request in beyond.requests[1:]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("text_totals", [False, True])
def test_a_higher_limit_is_cut_into_upload_dates(flickr_source, small_windows, text_totals):
    pictures = cats(60)
    faults = PageFaults(text_totals=text_totals)
    with serve(pictures, flickr=Flickr(pictures, faults, result_window=20)) as server:
        found = names(flickr_source(server).search("cat", 1000))
        again = names(flickr_source(server).search("cat", 1000))
        some = names(flickr_source(server).search("cat", 33))
    assert sorted(found) == [f"Cat_{number:03d}.png" for number in range(60)]
    assert len(set(found)) == 60
    assert found[:20] == [f"Cat_{number:03d}.png" for number in range(20)]  # most relevant first
    assert again == found and some == found[:33]


def test_every_window_holds_what_it_may(flickr_source, small_windows):
    pictures = cats(200)
    with serve(pictures, flickr=Flickr(pictures, result_window=20)) as server:
        assert len(set(names(flickr_source(server).search("cat", 10_000)))) == 200
    windows = {
        (int(request["min_upload_date"]), int(request["max_upload_date"]))
        for request in searches(server)
        if "min_upload_date" in request and request["page"] == "2"
    }
    for first, last in windows:
        inside = [p for p in pictures if first <= upload_date(p) <= last]
        assert len(inside) <= 20
    for one in windows:  # they do not overlap
        assert all(one == other or one[1] < other[0] or other[1] < one[0] for other in windows)


def test_totals_that_never_fit_end(flickr_source, small_windows, monkeypatch):
    monkeypatch.setattr(flickr_module, "MAX_REQUESTS", 40)
    photo = {"id": "1", "title": "cat", "url_l": "http://x.org/a.jpg"}
    body = {"photos": {"pages": 9999, "total": "999999999", "photo": [photo]}, "stat": "ok"}
    with serve(cats(1)) as server:
        source = flickr_source(server)
        list(source.search("cat", 1))
        server.flickr.scripted.extend([Scripted(200, json.dumps(body))] * 100)
        with pytest.raises(SourceError, match="no end after 40 requests"):
            list(source.search("another", 10_000))


def test_unavailable_and_throttled_pass(flickr_source, small_windows):
    pictures = cats(18)
    faults = PageFaults(unavailable_every=3, throttle_every=4)
    with serve(pictures, flickr=Flickr(pictures, faults)) as server:
        source = flickr_source(server)
        assert len(names(source.search("cat", 1000))) == 18
    assert set(server.flickr.refused) == {"105", "throttle"}
    assert source.counts()["retries"] == len(server.flickr.refused)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"stat": "fail", "code": 3, "message": "Parameterless searches"}, "search: 3: Paramet"),
        ({"stat": "fail", "code": 116, "message": "Bad URL found"}, "116: Bad URL found"),
        ({"stat": "ok", "photos": []}, "no list of photos"),
        ({"stat": "ok", "photos": {"photo": None}}, "no list of photos"),
        ([1], "no object"),
    ],
)
def test_failures_that_come_as_http_200(flickr_source, answer, told):
    with serve(cats(1)) as server:
        source = flickr_source(server)
        list(source.search("cat", 1))
        server.flickr.scripted.append(Scripted(200, json.dumps(answer)))
        with pytest.raises(SourceError, match=told):
            list(source.search("another", 10))


def test_a_key_that_is_refused_stops_the_source(flickr_source, monkeypatch):
    monkeypatch.setenv("FLICKR_API_KEY", "wrong-key")
    with serve(cats(1)) as server:
        with pytest.raises(SourceStopped, match="FLICKR_API_KEY is refused: 100: Invalid API Key"):
            list(flickr_source(server).search("cat", 10))
    assert server.flickr.refused == ["100"]


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.delenv("FLICKR_API_KEY")
    with pytest.raises(DataError, match="^FLICKR_API_KEY is not set: source=flickr needs a key"):
        FlickrSource(sources_for("http://127.0.0.1:9/"))


@pytest.mark.parametrize("value", ["s3cr&t/k=y+", "plain-key"])
def test_the_key_is_never_shown(flickr_source, monkeypatch, caplog, tmp_path, value):
    """It is a part of every URL: of httpx's errors and log lines, and of what servers repeat."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FLICKR_API_KEY", value)
    pictures = cats(3)
    flickr = Flickr(pictures)
    flickr.api_key = value
    told = []

    def fail(source, query):
        with pytest.raises(SourceError) as error:
            list(source.search(query, 10))
        told.append("".join(traceback.format_exception(error.value)))

    with serve(pictures, flickr=flickr) as server:
        source = flickr_source(server, tmp_path, max_attempts=1)
        list(source.search("cat", 10))
        url = str(source._client._client.build_request("GET", "http://x/", params={"k": value}).url)
        encoded = url.partition("?k=")[2]
        for status in (400, 429, 503, 200, 302):
            echo = f"in /rest/?api_key={encoded}&text=x: {value}"
            flickr.log.scripted.append(Scripted(status, echo, {"Location": f"/?k={encoded}"}))
            fail(source, f"cat {status}")
        for code in (1, 100, 105):
            message = {"stat": "fail", "code": code, "message": f"Invalid API Key ({value})"}
            flickr.log.scripted.append(Scripted(200, json.dumps(message)))
            fail(source, f"cat {code}")
    down = flickr_source(server, tmp_path / "down", max_attempts=1)
    fail(down, "cat")
    files = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3
    everything = "\n".join([*told, caplog.text, *files])
    assert everything.count("[hidden]") >= 8 and "ConnectError" in told[-1]
    assert value not in everything and encoded not in everything
    assert value not in str(source.settings)


def test_captions_of_cameras_and_empty_titles(flickr_source):
    pictures = [
        Picture("IMG_1234.png", PNG, "a cat on a mat", license_url=BY),
        Picture("cat.png", PNG, "", license_url=BY),
    ]
    with serve(pictures) as server:
        found = {c.caption for c in flickr_source(server).search("cat", 10)}
    assert found == {"a cat on a mat", "cat"}


@pytest.mark.parametrize(
    ("title", "description", "tags", "caption"),
    [
        ("Roof", "A cat sleeps", ["cat"], "Roof. A cat sleeps"),
        ("What a cat!", "It sleeps", [], "What a cat! It sleeps"),
        ("a cat", "A cat sleeps", [], "A cat sleeps"),
        ("DSC00017", "", ["cat", "roof"], "cat, roof"),
        ("IMG_2041", "A cat", [], "A cat"),
        ("P1010042", "", [], ""),
        ("20190304", "", ["cat"], "cat"),
        ("Boeing 747", "", [], "Boeing 747"),
        ("Apollo 11", "", [], "Apollo 11"),
    ],
)
def test_captions(title, description, tags, caption):
    assert caption_of(title, description, tags) == caption


@pytest.mark.parametrize(
    "photo",
    [
        7,
        {},
        {"id": "1", "title": "cat"},
        {"id": "1", "title": "cat", "url_l": "file:///etc/passwd"},
        {"id": "1", "title": None, "description": None, "url_l": "http://x.org/a.jpg"},
        {"id": "1", "title": {"_content": 3}, "tags": [], "url_l": "http://x.org/a.jpg"},
    ],
)
def test_photos_without_image_or_text_are_passed_over(flickr_source, photo):
    body = {"photos": {"pages": 1, "total": 1, "photo": [photo]}, "stat": "ok"}
    with serve(cats(1)) as server:
        source = flickr_source(server)
        list(source.search("cat", 1))
        server.flickr.scripted.append(Scripted(200, json.dumps(body)))
        assert list(source.search("another", 10)) == []


def test_the_hours_quota_holds_over_runs(flickr_source, tmp_path, monkeypatch):
    """3,600 an hour; here 4, one of them for the licences, each time in a new process."""
    limits = flickr_module.flickr_limits(FlickrConfig(requests_per_second=1000.0))
    object.__setattr__(limits, "requests_per_hour", 4)
    monkeypatch.setattr(flickr_module, "flickr_limits", lambda config: limits)
    with serve(cats(9)) as server:
        for number in range(3):
            list(flickr_source(server, tmp_path).search(f"cat {number:03d}", 10))
        with pytest.raises(SourceStopped, match="4 requests an hour is used up"):
            list(flickr_source(server, tmp_path).search("cat 004", 10))
    assert len(server.flickr.requests) == 4
