"""One of several captions by rule or by chance; dropped captions; json that is none."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pipeline.config import CaptionChoice
from pipeline.data.samples.captions import choose_caption
from pipeline.data.samples.tokenizer import END_OF_TEXT
from pipeline.data.samples.transforms import SampleRandom
from tests.pipeline.data.loading import equal, loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards

INFO = json.dumps({"captions": ["a cat", "a  cat &amp; a dog", "", "cat"]}).encode()


def choose(choice, info=INFO, dropout=0.0, position=0, text=b"a cat"):
    return choose_caption(text, info, CaptionChoice(choice), dropout, SampleRandom(0, position))


def test_rules():
    assert choose("own") == "a cat"
    assert choose("longest") == "a cat & a dog"
    assert choose("shortest") == "cat"


def test_random_is_uniform_over_different_captions():
    """ "a cat" is the .txt and in the list: one of three, not two of four; "" is none."""
    found = Counter(choose("random", position=position) for position in range(3000))
    assert set(found) == {"a cat", "a cat & a dog", "cat"}
    # Five standard deviations of 3000 draws at 1/3.
    assert all(abs(count - 1000) < 130 for count in found.values())


@pytest.mark.parametrize("choice", ["random", "longest", "shortest"])
@pytest.mark.parametrize("info", [b"", b"{}", b'{"captions": []}', b'{"captions": null}'])
def test_without_a_list_it_is_the_text(choice, info):
    assert choose(choice, info) == "a cat"


@pytest.mark.parametrize(
    "info", [b"{", b"[]", b'{"captions": "x"}', b'{"captions": [1]}', b"\xff", b"[" * 200_000]
)
def test_json_that_is_none_is_told(info):
    with pytest.raises(ValueError):
        choose("random", info)
    assert choose("own", info) == "a cat"


def test_an_empty_caption_is_told_whatever_the_choice():
    for choice in CaptionChoice:
        with pytest.raises(ValueError, match="empty caption"):
            choose(choice.value, text=b" \n ")


def test_dropout_is_a_share():
    found = Counter(choose("own", dropout=0.3, position=position) for position in range(3000))
    assert set(found) == {"", "a cat"} and abs(found[""] - 900) < 126


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    samples = make_samples(24)
    for number, sample in enumerate(samples):
        sample.info = {"captions": [f"number {number}", f"thing {number} of a long list of things"]}
    return write_shards(tmp_path_factory.mktemp("captions"), samples, per_shard=8)


def test_choice_end_to_end(manifest):
    own = read_batches(manifest, 3)
    chosen = read_batches(manifest, 3, caption_choice=CaptionChoice.longest)
    drawn = read_batches(manifest, 6, caption_choice=CaptionChoice.random)
    assert [batch.keys for batch in own] == [batch.keys for batch in chosen]
    assert all((a.caption_ids != b.caption_ids).all() for a, b in zip(own, chosen))
    first: dict[str, int] = {}
    second: dict[str, int] = {}
    for number, batch in enumerate(drawn):
        epoch = first if number < 3 else second
        epoch.update(zip(batch.keys, batch.caption_ids.tolist()))
    assert len(set(first)) == 24 and any(first[key] != second[key] for key in first)
    again = read_batches(
        manifest, 3, samples_seen=24, caption_choice=CaptionChoice.random, num_workers=3
    )
    assert all(equal(a, b) for a, b in zip(again, drawn[3:]))


def test_a_dropped_caption_is_start_and_end(manifest):
    batch = read_batches(manifest, 1, caption_dropout=1.0)[0]
    assert batch.tokens.shape == (8, 8) and (batch.tokens[:, 1] == END_OF_TEXT).all()
    assert not batch.tokens[:, 2:].any() and len(set(batch.caption_ids.tolist())) == 1


def test_broken_json_is_a_fault_only_where_it_is_used(tmp_path):
    samples = make_samples(16)
    path = write_shards(tmp_path, samples, 16)
    shard = tmp_path / "shards/000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'{"number": 7}', b'{"number": 7 '))
    assert sum(batch.num_bad for batch in read_batches(path, 2)) == 0
    with loader_of(path, caption_choice=CaptionChoice.random, max_bad_fraction=0.1) as loader:
        iterator = loader.batches(0)
        for _ in range(2):
            next(iterator)
        assert loader.faults.num_bad >= 1 and "key s00000007" in loader.faults.examples[0]
