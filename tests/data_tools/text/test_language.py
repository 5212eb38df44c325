from __future__ import annotations

import socket

import pytest

from data_tools.text.language import languages, num_words


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("a small brown dog runs along the beach", "en"),
        ("ein kleiner brauner Hund läuft am Strand entlang", "de"),
        ("un petit chien brun court le long de la plage", "fr"),
        ("маленькая коричневая собака бежит по пляжу", "ru"),
        ("一只棕色的小狗在沙滩上奔跑", "zh"),
        ("A DOG RUNS\nALONG THE BEACH IN SUMMER", "en"),
        ("dog", ""),
        ("der die das und", ""),
        ("", ""),
    ],
)
def test_language(caption, code):
    assert languages([caption]) == [code]


def test_words_are_counted_in_scripts_with_and_without_spaces():
    assert num_words("a dog's life -- 2 well-known dogs!") == 6
    assert num_words("小狗") == 2
    assert num_words("... !?") == 0


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert languages(["the five words of this caption", "x"]) == ["en", ""]
