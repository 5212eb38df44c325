import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from data_tools.config import CommonsConfig, SourcesConfig
from data_tools.demo.server import ApiFaults, Picture, Scripted, serve
from data_tools.search import commons as commons_module
from data_tools.search.base import SourceError, SourceStopped
from data_tools.search.commons import CommonsSource, clean_title
from data_tools.search.fields import search_words
from data_tools.search.http import retry_after_s
from data_tools.tables.schema import DataError
from data_tools.text.html_text import html_to_text
from data_tools.work.identity import user_agent
from tests.data_tools.local_web import CONTACT, animals, png


@pytest.fixture
def commons_source():
    """A factory: the source for an endpoint, closed after the test."""
    opened = []

    def make(endpoint, page_size=50, max_attempts=3, timeout_s=10.0, thumbnail_width=500):
        config = CommonsConfig(
            enabled=True,
            endpoint=endpoint,
            page_size=page_size,
            requests_per_second=1000.0,
            thumbnail_width=thumbnail_width,
        )
        sources = SourcesConfig(
            contact=CONTACT, timeout_s=timeout_s, max_attempts=max_attempts, commons=config
        )
        opened.append(CommonsSource(sources))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def names(candidates):
    return [candidate.url.rpartition("/")[2] for candidate in candidates]


def test_pages_are_followed_to_the_end_and_put_in_order(commons_source):
    pictures = animals(7)
    with serve(pictures) as commons:
        in_one = names(commons_source(commons.endpoint).search("cat", 100))
        paged = names(commons_source(commons.endpoint, page_size=3).search("cat", 100))
    assert in_one == [f"Cat_{number:02d}.png" for number in range(7)]
    assert paged == in_one
    assert [request.get("gsroffset") for request in commons.api_requests] == [None, None, "3", "6"]
    assert [request.get("continue") for request in commons.api_requests[2:]] == ["gsroffset||"] * 2


def test_the_limit_ends_the_paging(commons_source):
    with serve(animals(7)) as commons:
        found = list(commons_source(commons.endpoint, page_size=2).search("cat", 3))
    assert len(found) == 3
    assert len(commons.api_requests) == 2


def test_a_batch_that_comes_in_several_answers_is_joined(commons_source):
    """Commons renders a bounded number of thumbnails a request: the rest comes by iicontinue."""
    # the answers come by name, the ranks by title: "A very old cat" is named first, ranked last
    pictures = [*animals(5), *(Picture(f"A very old cat {n}.png", png()) for n in range(2))]
    with serve(pictures) as commons:
        whole = list(commons_source(commons.endpoint).search("cat", 100))
        requests_before = len(commons.api_requests)
    with serve(pictures, transform_limit=2) as parted:
        joined = list(commons_source(parted.endpoint, page_size=7).search("cat", 100))
    assert requests_before == 1
    # 7 pictures, 2 thumbnails an answer
    assert len(parted.api_requests) == 4
    assert names(joined) == names(whole)
    assert [name[:4] for name in names(joined)] == ["Cat_"] * 5 + ["A_ve"] * 2
    assert all(candidate.caption for candidate in joined)


def test_nothing_found_is_no_error(commons_source):
    with serve(animals()) as commons:
        assert list(commons_source(commons.endpoint).search("zebra", 10)) == []


def test_operators_alone_ask_nothing(commons_source):
    with serve(animals()) as commons:
        assert list(commons_source(commons.endpoint).search("* ?", 10)) == []
    assert commons.api_requests == []


def test_fields_of_a_candidate(commons_source):
    picture = Picture(
        "Red_cat 1.png",
        png(width=800, height=600),
        description="<div>A <b>cat</b>&nbsp;&amp;<br>a <i>d</i>og</div><style>p{}</style>",
        license="CC BY-SA 4.0",
        license_url="https://creativecommons.org/licenses/by-sa/4.0",
        artist='<a href="//example.org">Ann&#39;s cat</a>',
    )
    with serve([picture]) as commons:
        (small,) = commons_source(commons.endpoint).search("cat", 10)
        (full,) = commons_source(commons.endpoint, thumbnail_width=None).search("cat", 10)
    assert small.caption == "A cat & a dog"
    assert small.license == "CC BY-SA 4.0"
    assert small.license_url == "https://creativecommons.org/licenses/by-sa/4.0"
    assert small.attribution == "Ann's cat"
    assert small.page_url.endswith("/wiki/File:Red_cat_1.png")
    assert (small.width, small.height) == (800, 600)
    assert small.url.endswith("/500px-Red_cat_1.png")
    assert full.url.endswith("/Red_cat_1.png") and "/thumb/" not in full.url


def test_a_painting_has_the_text_that_a_browser_shows(commons_source):
    """As the templates Artwork and Creator write it, and one with what html.parser stops at."""
    hidden = '<div style="display: none;">{}</div>'
    painting = Picture(
        "Cat by the sea.png",
        png(width=80, height=60),
        description='<div class="fn"><span class="language fr"><b>Français :</b></span> <i>Le '
        "Chat</i></div>" + hidden.format('title QS:P1476,fr:"Le Chat"'),
        artist="<bdi>B. Peintre</bdi>" + hidden.format("creator QS:P170,Q42"),
    )
    odd = Picture("Cat.png", png(), description="a cat <![ on a wall")
    with serve([painting, odd]) as commons:
        found = {hit.caption: hit for hit in commons_source(commons.endpoint).search("cat", 10)}
    assert found.keys() == {"Le Chat", "a cat"}
    assert found["Le Chat"].attribution == "B. Peintre"


@pytest.mark.parametrize(
    ("info", "address"),
    [
        ({"width": 800, "mime": "image/jpeg"}, "thumb"),
        ({"width": 501, "mime": "image/jpeg"}, "thumb"),
        ({"width": 500, "mime": "image/jpeg"}, "file"),
        ({"width": 60, "mime": "image/png"}, "file"),
        ({"width": 60, "mime": "image/tiff"}, "thumb"),
        ({"width": None, "mime": "image/png"}, "thumb"),
        ({"width": 60}, "thumb"),
    ],
)
def test_files_no_wider_than_the_thumbnail_are_fetched_themselves(info, address):
    info |= {"url": "http://x/file", "thumburl": "http://x/thumb"}
    page = {"pageid": 1, "index": 1, "title": "File:A.jpg", "imageinfo": [info]}
    assert commons_module._candidate(page, 500).url == f"http://x/{address}"


def test_without_description_the_title_and_without_licence_nothing(commons_source):
    with serve([Picture("A_lone  cat.v2.png", png(), description="<p> </p>")]) as commons:
        (found,) = commons_source(commons.endpoint).search("cat", 10)
    assert found.caption == "A lone cat.v2"
    assert (found.license, found.license_url, found.attribution) == ("", "", "")


def test_maxlag_and_ratelimited_are_waited_for(commons_source):
    with serve(animals(6), faults=ApiFaults(maxlag_every=2, retry_after_s=0)) as commons:
        source = commons_source(commons.endpoint, page_size=3)
        assert len(list(source.search("cat", 100))) == 6
        assert commons.refused == ["maxlag"]
        assert source.counts() == {"requests": 3, "retries": 1}
    with serve(animals(6), faults=ApiFaults(ratelimited_every=3, retry_after_s=0)) as commons:
        assert len(list(commons_source(commons.endpoint, page_size=2).search("cat", 100))) == 6
        assert commons.refused == ["ratelimited"]


@pytest.mark.parametrize("as_date", [False, True])
def test_429_waits_as_long_as_it_says(commons_source, as_date):
    moment = datetime.now(timezone.utc) + timedelta(seconds=2)
    wait = format_datetime(moment, usegmt=True) if as_date else "1"
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(429, "slow down", {"Retry-After": wait}))
        started = time.monotonic()
        assert len(list(commons_source(commons.endpoint).search("cat", 100))) == 2
        # a date has whole seconds: up to one of the two is cut off
        assert time.monotonic() - started >= 0.9
    assert commons.refused == ["scripted"]


def test_a_wait_of_an_hour_is_not_waited(commons_source):
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(429, "slow down", {"Retry-After": "3600"}))
        source = commons_source(commons.endpoint)
        with pytest.raises(SourceStopped, match="slow down.*3600 s.*asked again in 3600 s, at 2"):
            list(source.search("cat", 100))
        with pytest.raises(SourceStopped, match="asked for a pause"):
            list(source.search("dog", 100))
    assert commons.refused == ["scripted"] and commons.api_requests == []
    assert commons.api_requests == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_errors_that_pass_are_tried_again(commons_source, status):
    with serve(animals(2)) as commons:
        commons.scripted.extend([Scripted(status, "busy")] * 2)
        source = commons_source(commons.endpoint)
        assert len(list(source.search("cat", 100))) == 2
        assert source.counts() == {"requests": 3, "retries": 2}


def test_attempts_are_bounded(commons_source):
    with serve(animals(2)) as commons:
        commons.scripted.extend([Scripted(503, "out of order")] * 9)
        with pytest.raises(SourceError, match=r"503: out of order \(3 attempts\)"):
            list(commons_source(commons.endpoint).search("cat", 100))
        assert len(commons.scripted) == 6


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_shown_and_not_repeated(commons_source, status):
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(status, "our terms\nhave changed"))
        with pytest.raises(SourceError, match=f"HTTP {status}: our terms have changed"):
            list(commons_source(commons.endpoint).search("cat", 100))
    assert commons.refused == ["scripted"]
    assert commons.api_requests == []


def test_an_error_told_as_http_200_is_shown_and_not_repeated(commons_source):
    body = (
        '{"error": {"code": "cirrussearch-query-too-long", "info": "Search request is too long"}}'
    )
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(200, body))
        with pytest.raises(SourceError, match="query-too-long: Search request is too long"):
            list(commons_source(commons.endpoint).search("cat", 100))
    assert commons.api_requests == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Scripted(200, "<html>maintenance</html>"), "not JSON.*maintenance"),
        (Scripted(200, "[1, 2]"), "no object"),
        (Scripted(200, "[" * 200_000), "not JSON"),
        (Scripted(301, "", {"Location": "https://new.example.org/"}), "new.example.org"),
        (Scripted(200, " " * 20_000_001), "larger than"),
    ],
)
def test_answers_that_are_none(commons_source, answer, told):
    with serve(animals(2)) as commons:
        commons.scripted.append(answer)
        with pytest.raises(SourceError, match=told):
            list(commons_source(commons.endpoint).search("cat", 100))


@pytest.mark.parametrize(
    "pages",
    [
        "[]",
        "{}",
        '[7, {"pageid": 1}, {"pageid": 1, "index": 1}]',
        '[{"pageid": 1, "index": 1, "imageinfo": []}]',
        '[{"pageid": 1, "index": 1, "imageinfo": [{"url": "file:///etc/passwd"}]}]',
        '[{"pageid": 1, "index": 1, "imageinfo": [{"url": null, "extmetadata": 3}]}]',
    ],
)
def test_pages_without_a_usable_image_are_passed_over(commons_source, pages):
    with serve(animals(2)) as commons:
        body = f'{{"batchcomplete": true, "query": {{"pages": {pages}}}}}'
        commons.scripted.append(Scripted(200, body))
        assert list(commons_source(commons.endpoint).search("cat", 100)) == []


def test_half_a_surrogate_pair_becomes_a_question_mark(commons_source):
    page = (
        '{"pageid": 1, "index": 1, "imageinfo": [{"url": "http://x.org/a.png", "extmetadata": '
        '{"ImageDescription": {"value": "cat \\ud83d"}}}]}'
    )
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(200, f'{{"query": {{"pages": [{page}]}}}}'))
        (found,) = commons_source(commons.endpoint).search("cat", 100)
    assert found.caption == "cat ?"


def test_a_picture_that_moves_to_a_later_batch_is_given_once(commons_source):
    def batch(number, more):
        info = f'[{{"url": "http://x.org/{number}.png"}}]'
        page = f'{{"pageid": {number}, "index": 1, "title": "Cat {number}", "imageinfo": {info}}}'
        ends = f'"continue": {{"gsroffset": {more}}}, ' if more else ""
        return Scripted(200, f'{{{ends}"batchcomplete": true, "query": {{"pages": [{page}]}}}}')

    with serve(animals(2)) as commons:
        commons.scripted.extend([batch(1, 1), batch(1, 2), batch(2, 0)])
        assert names(commons_source(commons.endpoint).search("cat", 100)) == ["1.png", "2.png"]


def test_a_continue_that_is_none_ends(commons_source):
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(200, '{"batchcomplete": true, "continue": [1]}'))
        assert list(commons_source(commons.endpoint).search("cat", 100)) == []


def test_a_server_that_always_has_more_ends(commons_source, monkeypatch):
    monkeypatch.setattr(commons_module, "MAX_ANSWERS", 4)
    with serve(animals(2)) as commons:
        commons.scripted.extend(
            Scripted(200, f'{{"batchcomplete": true, "continue": {{"gsroffset": {number}}}}}')
            for number in range(9)
        )
        with pytest.raises(SourceError, match="no end after 4 answers"):
            list(commons_source(commons.endpoint).search("cat", 100))
        assert len(commons.scripted) == 5


def test_a_continue_that_leads_nowhere_ends(commons_source):
    body = '{"batchcomplete": true, "continue": {"gsroffset": 5, "continue": "gsroffset||"}}'
    with serve(animals(2)) as commons:
        commons.scripted.extend([Scripted(200, body)] * 5)
        with pytest.raises(SourceError, match="same `continue`"):
            list(commons_source(commons.endpoint).search("cat", 100))


def test_a_server_that_is_down(commons_source):
    with serve(animals(2)) as commons:
        endpoint = commons.endpoint
    with pytest.raises(SourceError, match=r"ConnectError.*\(2 attempts\)"):
        list(commons_source(endpoint, max_attempts=2).search("cat", 100))


def test_a_server_that_drips_bytes_does_not_hold_us(commons_source):
    """Each read is in time; the whole answer never is."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(SourceError, match="no whole answer within 0.5 s"):
            list(commons_source(endpoint, max_attempts=1, timeout_s=0.5).search("cat", 1))
    finally:
        stop.set()
        thread.join(timeout=10)
        listener.close()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ice hockey", "ice hockey"),
        ('insource:/x/ -dog "cat"', "insource /x/ dog cat"),
        ("cats OR dogs", "cats or dogs"),
        ("rock-n-roll & R&B", "rock-n-roll & R&B"),
        ("हिन्दी café", "हिन्दी café"),
        ("keycap: *", "keycap"),
        ("farmer\u2019s mar\u00adket", "farmer's market"),
        ("\u202br&amp;b\u202c \u201clive\u201d", "r&b live"),
        ("+cat | -dog (red)", "cat dog red"),
        ("*** ?", ""),
        ("\U0001f431", "\U0001f431"),
        ("a " * 60, " ".join("a" * 50)),
        ("x" * 200 + " " + "y" * 200, "x" * 200),
        ("z" * 400, "z" * 300),
    ],
)
def test_queries_are_sent_as_plain_words(query, words):
    assert search_words(query) == words


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("ice<b>s</b> &lt;3", "ices <3"),
        ("<p>one</p><p>two</p>three<br/>four", "one two three four"),
        ("<script>alert(1)</script>x<style>y</style>", "x"),
        ("  plain\n text ", "plain text"),
        ("", ""),
    ],
)
def test_text_of_html(fragment, text):
    assert html_to_text(fragment) == text


@pytest.mark.parametrize("end", ["<p", "<a href='x>y", "&#xffffffff;", "</", "<!--", "<![CDATA["])
def test_broken_html_is_no_error(end):
    assert html_to_text(f"a <b>cat</i> {end}").startswith("a cat")


@pytest.mark.parametrize(
    ("title", "clean"), [("File:Ice_hockey 01.jpeg", "Ice hockey 01"), ("File:v1.0", "v1.0")]
)
def test_titles(title, clean):
    assert clean_title(title) == clean


def test_user_agent_names_the_caller():
    assert user_agent("me@example.org").startswith("clip-pretrain/")
    assert user_agent("me@example.org").endswith(" (+me@example.org)")
    for contact in ("", "nobody", "me@example.org\r\nX: y", "mé@example.org"):
        with pytest.raises(DataError, match="sources.contact"):
            user_agent(contact)


NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("٣", None),
        ("9" * 400, 366 * 86400.0),
        ("Thu, 01 Jan 9999 12:00:30 GMT", 366 * 86400.0),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value, NOON) == seconds
