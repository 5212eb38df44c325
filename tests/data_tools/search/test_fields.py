import pytest

from data_tools.search.fields import (
    creative_commons_name,
    number,
    pixels,
    plain,
    visible,
    web_address,
)
from data_tools.search.keys import Secrets


@pytest.mark.parametrize(
    ("value", "count", "side"),
    [
        (640, 640, 640),
        ("640", 640, 640),
        (0, 0, None),
        (-3, None, None),
        (2**31, 2**31, None),
        (10**15, None, None),
        ("9" * 5000, None, None),
        ("٣", None, None),
        ("6 40", None, None),
        (6.5, None, None),
        (True, None, None),
        (None, None, None),
        ([640], None, None),
    ],
)
def test_numbers(value, count, side):
    assert number(value) == count
    assert pixels(value) == side


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("http://x.org/a", "http://x.org/a"),
        ("HTTPS://x.org/a", "HTTPS://x.org/a"),
        ("//x.org/a", "https://x.org/a"),
        (" http://x.org/a\n", "http://x.org/a"),
        ("file:///etc/passwd", ""),
        ("javascript:alert(1)", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_web_addresses(value, address):
    assert web_address(value) == address


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC BY-SA 4.0"),
        ("http://creativecommons.org/licenses/by-nc-nd/2.0/jp/", "CC BY-NC-ND 2.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "Public Domain Mark 1.0"),
        ("https://example.org/licenses/by/4.0/", ""),
        ("", ""),
    ],
)
def test_creative_commons_names(url, name):
    assert creative_commons_name(url) == name


def test_texts():
    assert plain("  a <b>\n c ") == "a <b> c"
    assert visible("  a <b>b</b>\n c &amp; d") == "a b c & d"
    assert plain("\ud83d") == visible("\ud83d") == "?"
    assert plain(None) == visible(3) == ""


def test_keys_are_hidden_in_every_form():
    secrets = Secrets(["a/b+c&d", "abc"])
    secrets.add("abcdef")
    told = "?key=a%2Fb%2Bc%26d&k=a/b+c&d abcdef abc"
    assert secrets.hidden_in(told) == "?key=[hidden]&k=[hidden] [hidden] [hidden]"
    assert Secrets().hidden_in(told) == told
    assert Secrets([""]).hidden_in("abc") == "abc"
