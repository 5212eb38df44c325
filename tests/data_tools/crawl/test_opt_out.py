from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from data_tools.crawl.fetch_error import FetchError
from data_tools.crawl.opt_out import check_robots_tags, check_tdm_reservation


def headers(*values: str, name: str = "X-Robots-Tag") -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([(name, value) for value in values]))


def forbids(*values: str) -> bool:
    try:
        check_robots_tags(headers(*values), "clip-pretrain")
    except FetchError as error:
        assert error.status == "rejected:x_robots_tag"
        return True
    return False


@pytest.mark.parametrize(
    "values",
    [
        ["noai"],
        ["NOAI"],
        ["noimageai"],
        ["noml"],
        ["noindex"],
        ["noimageindex"],
        ["none"],
        [" nofollow ,noai "],
        ["noai,"],
        ["nofollow", "noai"],
        ["*: noai"],
        ["clip-pretrain: noai"],
        ["Clip-Pretrain:noai"],
        ["googlebot: nofollow", "noai"],
        ["googlebot: nofollow, clip-pretrain: noml"],
        ["unavailable_after: 1 Jan 2099 00:00:00 GMT, noai"],
        ["unavailable_after: Wed, 03 Dec 2098 13:09:53 GMT, noai"],
        ["unavailable_after: Wednesday, 03-Dec-98 13:09:53 GMT, noai"],
        ["unavailable_after: 2099-12-03T13:09:53+01:00, noml"],
        ["unavailable_after: 2014-12-03"],
        ["unavailable_after: 3 Dec 2014 13:09:53 GMT"],
        ["clip-pretrain: unavailable_after: Wed, 03 Dec 2014 13:09:53 GMT"],
        ["max-snippet: 20, noai"],
    ],
)
def test_forbidding(values):
    assert forbids(*values)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["all"],
        ["nofollow"],
        ["noarchive, nosnippet"],
        ["max-image-preview: none"],
        ["googlebot: noindex"],
        ["googlebot: noindex, noai"],
        ["unavailable_after: Wed, 03 Dec 2098 13:09:53 GMT"],
        ["unavailable_after: soon"],
        ["otherbot: unavailable_after: 3 Dec 2014 13:09:53 GMT"],
        ["noaircraft"],
    ],
)
def test_allowing(values):
    assert not forbids(*values)


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_text_gets_an_answer(values):
    forbids(*values)


@given(st.text(alphabet="unavilbe_ftr:, 0123456789GMTwedDc-+Z", max_size=60))
def test_any_date_gets_an_answer(text):
    forbids(f"unavailable_after: {text}")


@pytest.mark.parametrize(("value", "reserved"), [("1", True), (" 1 ", True), ("0", False)])
def test_tdm_reservation(value, reserved):
    given_headers = headers(value, name="tdm-reservation")
    if not reserved:
        check_tdm_reservation(given_headers)
        return
    with pytest.raises(FetchError) as refusal:
        check_tdm_reservation(given_headers)
    assert refusal.value.status == "rejected:tdm_reservation"
    check_tdm_reservation(headers())
