import httpx
import pytest

from data_tools.demo.server import ApiFaults, Picture, Scripted, serve
from tests.data_tools.local_web import CONTACT, animals, pixels, png

AGENT = {"User-Agent": f"tests (+{CONTACT})"}


def ask(commons, **params):
    base = {
        "action": "query",
        "format": "json",
        "formatversion": "2",
        "generator": "search",
        "gsrnamespace": "6",
        "prop": "imageinfo",
    }
    return httpx.get(commons.endpoint, params={**base, **params}, headers=AGENT, timeout=10)


def get(url, **options):
    return httpx.get(url, timeout=10, **options)


def test_pages_come_unordered_with_their_rank():
    with serve(animals(12)) as commons:
        answer = ask(commons, gsrsearch="cat", gsrlimit="50").json()
    indices = [page["index"] for page in answer["query"]["pages"]]
    assert sorted(indices) == list(range(1, 13))
    assert indices != sorted(indices)
    assert answer["batchcomplete"] is True and "continue" not in answer


def test_formatversion_1_has_pages_by_id_and_empty_flags():
    with serve(animals(3)) as commons:
        answer = ask(commons, gsrsearch="cat", formatversion="1").json()
    assert answer["batchcomplete"] == ""
    assert {str(page["pageid"]) for page in answer["query"]["pages"].values()} == set(
        answer["query"]["pages"]
    )


def test_continue_walks_through_all_results():
    with serve(animals(5)) as commons:
        first = ask(commons, gsrsearch="cat", gsrlimit="2").json()
        assert first["continue"] == {"gsroffset": 2, "continue": "gsroffset||"}
        last = ask(commons, gsrsearch="cat", gsrlimit="2", gsroffset="4").json()
    assert "continue" not in last
    assert [page["index"] for page in last["query"]["pages"]] == [5]


def test_search_is_and_over_folded_words():
    pictures = [
        Picture("A.png", png(), "<p>Red <b>CAT</b></p>"),
        Picture("Cat.png", png(), "blue"),
        Picture("Cat.svg", b"<svg/>", "red"),
    ]
    with serve(pictures) as commons:

        def titles(words):
            pages = ask(commons, gsrsearch=words).json().get("query", {"pages": []})["pages"]
            return [page["title"] for page in sorted(pages, key=lambda page: page["index"])]

        assert titles("ｃａｔ") == ["File:Cat.png", "File:Cat.svg", "File:A.png"]
        assert titles("filetype:bitmap red cat") == ["File:A.png"]
        assert titles("green") == []
        assert titles("filetype:bitmap") == []
        assert "query" not in ask(commons, gsrsearch="green").json()


def test_metadata_is_html_and_filtered():
    picture = Picture("Cat.png", png(), "<b>x</b>", license="CC0", artist="<i>me</i>")
    with serve([picture]) as commons:
        wanted = "ImageDescription|LicenseShortName|LicenseUrl"
        answer = ask(commons, gsrsearch="cat", iiextmetadatafilter=wanted).json()
    metadata = answer["query"]["pages"][0]["imageinfo"][0]["extmetadata"]
    assert {name: entry["value"] for name, entry in metadata.items()} == {
        "ImageDescription": "<b>x</b>",
        "LicenseShortName": "CC0",
    }


def test_pictures_thumbnails_dead_and_moved_addresses():
    pictures = [
        Picture("Cat.png", png(800, 600), site="one"),
        Picture("Dead cat.png", png(), site="one", served="missing"),
        Picture("Moved cat & co.png", png(gray=7), site="two", served="moved"),
    ]
    with serve(pictures) as commons:
        answer = ask(commons, gsrsearch="cat", iiurlwidth="400").json()
        infos = {page["title"]: page["imageinfo"][0] for page in answer["query"]["pages"]}
        cat = infos["File:Cat.png"]
        assert get(cat["url"]).content == pictures[0].content
        assert pixels(get(cat["thumburl"]).content).shape == (300, 400, 3)
        assert (cat["width"], cat["thumbwidth"], cat["thumbheight"]) == (800, 400, 300)
        assert get(infos["File:Dead cat.png"]["url"]).status_code == 404
        moved = infos["File:Moved cat & co.png"]
        assert moved["thumburl"] == moved["url"]  # smaller than asked: never enlarged
        assert get(moved["url"]).status_code == 302
        followed = get(moved["url"], follow_redirects=True)
        assert followed.status_code == 200 and followed.content == pictures[2].content
        assert set(commons.site_hosts) == {"one", "two"}
        assert all(host.startswith("127.0.0.1:") for host in commons.hosts)
        assert get(f"http://{commons.hosts[0]}/etc/passwd").status_code == 404
    assert ("one", "/" + cat["url"].split("/", 3)[3]) in commons.image_requests


def test_robots_txt_is_each_sites_own():
    pictures = [Picture("A.png", png(), site="one"), Picture("B.png", png(), site="two")]
    with serve(pictures, robots={"two": "User-agent: *\nDisallow: /\n"}) as commons:
        texts = {
            site: get(f"http://{host}/robots.txt").text for site, host in commons.site_hosts.items()
        }
    assert "Allow: /" in texts["one"]
    assert "Disallow: /" in texts["two"]


def test_a_caller_without_contact_is_refused():
    with serve(animals(1)) as commons:
        assert get(commons.endpoint, params={"action": "query"}).status_code == 403


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "missingparam"),
        ({"gsrsearch": "cat", "gsrlimit": "many"}, "badinteger"),
        ({"gsrsearch": "cat", "generator": "random"}, "badvalue"),
    ],
)
def test_errors_are_http_200(params, code):
    with serve(animals(1)) as commons:
        answer = ask(commons, **params)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == code


def test_faults_come_at_their_turn_with_retry_after():
    with serve(animals(1), faults=ApiFaults(maxlag_every=3, ratelimited_every=4)) as commons:
        answers = [ask(commons, gsrsearch="cat", maxlag="5") for _ in range(6)]
    codes = [answer.json().get("error", {}).get("code") for answer in answers]
    assert codes == [None, None, "maxlag", "ratelimited", None, "maxlag"]
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.headers.get("Retry-After") for answer in answers[2:4]] == ["1", "1"]


def test_scripted_answers_come_first():
    with serve(animals(1)) as commons:
        commons.scripted.append(Scripted(503, "later", {"Retry-After": "9"}))
        first, second = (ask(commons, gsrsearch="cat") for _ in range(2))
    assert (first.status_code, first.text, first.headers["Retry-After"]) == (503, "later", "9")
    assert second.status_code == 200


def test_ports_can_be_given_and_are_free_afterwards():
    with serve(animals(1)) as commons:
        port = int(commons.hosts[0].split(":")[1])
        with pytest.raises(OSError, match="in use"):
            with serve(animals(1), ports={"site": port}):
                pass
    with serve(animals(1), ports={"site": port}) as again:
        assert again.hosts == [f"127.0.0.1:{port}"]
