"""The local Openverse and Flickr: what the real ones do, to whoever asks."""

import httpx
import pytest

from data_tools.demo.server import Picture, Scripted
from tests.data_tools.local_web import png
from tests.data_tools.search.doubles.flickr import Flickr, license_id, upload_date
from tests.data_tools.search.doubles.openverse import Openverse
from tests.data_tools.search.doubles.replies import PageFaults, Throttle
from tests.data_tools.search.doubles.server import serve

PNG = png()
BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"
CLIENT = {
    "grant_type": "client_credentials",
    "client_id": "demo-client-id",
    "client_secret": "demo-client-secret",
}


def cats(count, **fields):
    return [Picture(f"Cat {n:03d}.png", PNG, "<b>a</b> cat", **fields) for n in range(count)]


def images(server, token="", **params):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"{server.openverse.endpoint}images/"
    return httpx.get(address, params=params, headers=headers, timeout=10)


def token_of(server, **changes):
    address = f"{server.openverse.endpoint}auth_tokens/token/"
    return httpx.post(address, data={**CLIENT, **changes}, timeout=10)


def test_openverse_gives_240_works_in_pages_of_20():
    with serve(cats(300)) as server:
        first = images(server, q="cat").json()
        last = images(server, q="cat", page="12").json()
        after = images(server, q="cat", page="13").json()
        nothing = images(server, q="zebra").json()
    assert (first["result_count"], first["page_count"], first["page_size"]) == (240, 12, 20)
    assert len(first["results"]) == len(last["results"]) == 20
    assert after["results"] == []
    assert (nothing["result_count"], nothing["page_count"], nothing["results"]) == (0, 0, [])


def test_openverse_fields():
    with serve(cats(1, license_url=BY_SA, artist="<i>Ann</i>")) as server:
        (result,) = images(server, q="cat").json()["results"]
        picture = httpx.get(result["url"], timeout=10)
    assert picture.content == PNG
    assert (result["license"], result["license_version"]) == ("by-sa", "4.0")
    assert (result["width"], result["height"], result["creator"]) == (80, 60, "Ann")
    assert result["title"] == "Cat 000"
    assert [tag["name"] for tag in result["tags"] if tag["accuracy"] is None] == ["a", "cat"]


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        ({"page_size": "21"}, 401, None),
        ({"page_size": "0"}, 400, "page_size"),
        ({"page_size": "many"}, 400, "page_size"),
        ({"page": "21"}, 400, "page"),
        ({"pagesize": "20"}, 400, "pagesize"),
        ({"li": "by"}, 400, "li"),
        ({"lt": "all"}, 400, "lt"),
        ({"provider": "flickr"}, 400, "provider"),
        ({"source": "a", "excluded_source": "b"}, 400, "excluded_source"),
        ({"license_type": "free"}, 400, "license_type"),
    ],
)
def test_openverse_refuses(params, status, field):
    with serve(cats(1)) as server:
        answer = images(server, q="cat", **params)
    assert answer.status_code == status
    assert answer.json().get("fields") == ([field] if field else None)
    assert server.openverse.refused == [field or "page_size"]


def test_openverse_tokens():
    pictures = cats(300)
    openverse = Openverse(pictures)
    with serve(pictures, openverse=openverse) as server:
        granted = token_of(server).json()
        assert (granted["token_type"], granted["expires_in"]) == ("Bearer", 36000)
        token = granted["access_token"]
        assert len(images(server, token, q="cat", page_size="500").json()["results"]) == 240
        assert images(server, token, q="cat", page_size="501").status_code == 400
        assert images(server, "made-up", q="cat").status_code == 401
        openverse.tokens.clear()
        assert images(server, token, q="cat").status_code == 401
        assert token_of(server, client_secret="wrong").status_code == 401
        assert token_of(server, grant_type="password").status_code == 400


def test_openverse_throttles_tell_what_is_left():
    pictures = cats(1)
    openverse = Openverse(pictures, throttles={"anon_burst": "2/hour", "anon_sustained": "9/day"})
    with serve(pictures, openverse=openverse) as server:
        answers = [images(server, q="cat") for _ in range(3)]
        keyed = images(server, token_of(server).json()["access_token"], q="cat")
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["X-RateLimit-Available-anon_burst"] for answer in answers] == [
        "1",
        "0",
        "0",
    ]
    assert answers[0].headers["X-RateLimit-Limit-anon_burst"] == "2/hour"
    assert 3590 < int(answers[2].headers["Retry-After"]) <= 3600
    assert keyed.status_code == 200 and "X-RateLimit-Limit-anon_burst" not in keyed.headers


def test_openverse_dead_links_are_filtered_by_default():
    pictures = [*cats(1), Picture("Dead cat.png", PNG, served="missing")]
    with serve(pictures) as server:
        assert images(server, q="cat").json()["result_count"] == 1
        assert images(server, q="cat", filter_dead="false").json()["result_count"] == 2


def test_openverse_licence_types():
    nc_nd = "https://creativecommons.org/licenses/by-nc-nd/2.0/"
    pictures = [*cats(1, license_url=BY_SA), Picture("Cat x.png", PNG, license_url=nc_nd)]
    with serve(pictures) as server:
        for kind, count in (("all", 2), ("commercial", 1), ("modification", 1), ("all-cc", 2)):
            assert images(server, q="cat", license_type=kind).json()["result_count"] == count


def rest(server, **params):
    base = {
        "api_key": "demo-flickr-key",
        "method": "flickr.photos.search",
        "format": "json",
        "nojsoncallback": "1",
    }
    return httpx.get(server.flickr.endpoint, params={**base, **params}, timeout=10)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"api_key": "x", "text": "cat"}, 100),
        ({}, 3),
        ({"method": "flickr.test"}, 112),
        ({"format": "rest", "text": "cat"}, 111),
    ],
)
def test_flickr_fails_with_http_200(params, code):
    with serve(cats(1)) as server:
        answer = rest(server, **params)
    assert answer.status_code == 200
    assert (answer.json()["stat"], answer.json()["code"]) == ("fail", code)


def test_flickr_wraps_its_json_unless_told_not_to():
    with serve(cats(1)) as server:
        assert rest(server, text="cat", nojsoncallback="0").text.startswith("jsonFlickrApi({")


def test_flickr_fields_come_when_asked_for():
    with serve(cats(1, license_url=BY_SA)) as server:
        (bare,) = rest(server, text="cat").json()["photos"]["photo"]
        extras = "description,license,owner_name,o_dims,tags,date_upload,url_o,url_l"
        (full,) = rest(server, text="cat", extras=extras).json()["photos"]["photo"]
    assert "url_o" not in bare and "license" not in bare
    assert full["description"] == {"_content": "<b>a</b> cat"}
    assert (full["license"], full["o_width"], full["tags"]) == ("12", "80", "a cat")
    assert "url_l" not in full  # it is smaller than 1024 px
    assert full["dateupload"].isdigit()


def test_flickr_repeats_itself_beyond_its_window():
    pictures = cats(60)
    flickr = Flickr(pictures, result_window=20)
    with serve(pictures, flickr=flickr) as server:

        def page(number):
            answer = rest(server, text="cat", per_page="10", page=str(number)).json()["photos"]
            assert (answer["total"], answer["pages"]) == (60, 6)
            return [photo["id"] for photo in answer["photo"]]

        assert page(1) != page(2)
        assert page(3) == page(2) == page(6)


def test_flickr_upload_dates_and_licences_narrow():
    pictures = [*cats(20, license_url=BY_SA), Picture("Cat x.png", PNG)]
    dates = sorted(upload_date(picture) for picture in pictures[:20])
    with serve(pictures) as server:

        def total(**params):
            return rest(server, text="cat", **params).json()["photos"]["total"]

        assert total() == 21 and total(license="12") == 20 and total(license="0") == 1
        middle = {"min_upload_date": str(dates[5]), "max_upload_date": str(dates[9])}
        assert total(license="12", **middle) == 5
    assert license_id(pictures[-1]) == 0


def test_page_faults():
    pictures = cats(30)
    faults = PageFaults(repeated=3, shrinks_by=4, text_totals=True, throttle_every=4)
    with serve(pictures, flickr=Flickr(pictures, faults)) as server:
        pages = [
            rest(server, text="cat", per_page="10", page=str(n)).json()["photos"] for n in (1, 2, 3)
        ]
        throttled = rest(server, text="cat")
    ids = [[photo["id"] for photo in page["photo"]] for page in pages]
    assert [len(page) for page in ids] == [10, 13, 13]
    assert ids[1][:3] == ids[0][-3:] and ids[2][:3] == ids[1][-3:]
    assert [page["total"] for page in pages] == ["30", "26", "22"]
    assert throttled.status_code == 429 and "Retry-After" not in throttled.headers


def test_null_titles_and_unavailability():
    pictures = cats(4)
    faults = PageFaults(null_title_every=1, unavailable_every=2, throttle_every=3, retry_after_s=7)
    with serve(pictures, openverse=Openverse(pictures, faults)) as server:
        answers = [images(server, q="cat") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 503, 429]
    assert answers[2].headers["Retry-After"] == "7"
    assert {result["title"] for result in answers[0].json()["results"]} == {None}


def test_scripted_answers_come_first():
    with serve(cats(1)) as server:
        server.openverse.scripted.append(Scripted(418, "tea"))
        server.flickr.scripted.append(Scripted(503, "later", {"Retry-After": "9"}))
        assert images(server, q="cat").text == "tea"
        assert rest(server, text="cat").headers["Retry-After"] == "9"
        assert images(server, q="cat").status_code == rest(server, text="cat").status_code == 200


def test_a_throttle_slides(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tests.data_tools.search.doubles.replies.time.monotonic", lambda: now[0])
    throttle = Throttle("x", "2/min")
    assert [throttle.refusal_s() for _ in range(3)] == [None, None, 60.0]
    now[0] = 59.0
    assert throttle.refusal_s() == 1.0
    now[0] = 60.0
    assert throttle.refusal_s() is None
