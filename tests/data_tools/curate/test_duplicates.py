from __future__ import annotations

import random

import numpy as np
import pytest

from data_tools import curate
from data_tools.config import CaptionChoice
from data_tools.tables.schema import UNITED, read_table
from tests.data_tools.curate.crawled import (
    Pair,
    crawl,
    curated_of,
    fates_of,
    job_of,
    jpeg,
    photo,
    resized,
)


@pytest.mark.parametrize(
    ("choice", "main"),
    [
        (CaptionChoice.longest, "the longest caption of all"),
        (CaptionChoice.shortest, "short"),
        (CaptionChoice.most_queries, "asked for often"),
        (CaptionChoice.first, None),
    ],
)
def test_one_picture_keeps_all_captions(tmp_path, choice, main):
    picture = jpeg(photo(1))
    pairs = [
        Pair(picture, "the longest caption of all"),
        Pair(picture, "short", {"query_ids": [1, 2]}),
        Pair(picture, "asked for often", {"query_ids": [3, 4, 5]}),
        Pair(picture, "  short "),  # the same text from elsewhere
        Pair(jpeg(photo(2)), "another picture"),
    ]
    paths, uids = crawl(tmp_path, pairs)
    counts = curate.run(job_of(paths, caption_choice=choice), paths)
    assert counts == {"fetched": 5, "duplicate": 3, "curated": 2}
    (kept,) = (row for row in curated_of(paths).values() if row["uid"] != uids[4])
    texts = {"the longest caption of all", "short", "asked for often"}
    assert kept["captions"][0] == kept["caption"] and len(kept["captions"]) == 3
    assert set(kept["captions"]) == texts
    assert kept["caption"] == main if main else kept["uid"] == min(uids[:4])
    assert kept["query_ids"] == [0, 1, 2, 3, 4, 5]
    assert curated_of(paths)[uids[4]]["captions"] == ["another picture"]
    fates = fates_of(paths)
    assert set(fates.values()) == {("rejected:duplicate", f"same bytes as {kept['uid']}")}


def test_queries_of_all_pairs_with_a_picture_are_united(tmp_path):
    """By bytes, by nearness, and by both in a chain; each query is brought by one pair."""
    picture = photo(1, 256)
    small = jpeg(resized(picture, 128), 75)
    pairs = [
        Pair(jpeg(picture), "the longest of all captions", {"query_ids": [5, 7]}),
        Pair(small, "a small copy of it", {"query_ids": [3, 7]}),
        Pair(small, "its bytes", {"query_ids": [9, 3]}),
        Pair(jpeg(resized(picture, 100), 60), "a third", {"query_ids": [5]}),
        Pair(jpeg(photo(2)), "another picture", {"query_ids": [7, 8]}),
        Pair(jpeg(photo(2)), "x", {"query_ids": [1]}),  # its caption is too short
    ]
    paths, uids = crawl(tmp_path, pairs)
    counts = curate.run(job_of(paths), paths)
    assert counts["curated"] == 2
    kept = curated_of(paths)
    assert kept[uids[0]]["query_ids"] == [3, 5, 7, 9]
    assert kept[uids[4]]["query_ids"] == [7, 8]
    united = read_table(paths.table("united"), UNITED).to_pylist()
    assert {row["main"] for row in united} == {uids[0]}
    assert sorted(query for row in united for query in row["query_ids"]) == [3, 9]
    queries = {uid: pair.values["query_ids"] for uid, pair in zip(uids, pairs, strict=True)}
    for row in united:
        assert set(row["query_ids"]) <= set(queries[row["uid"]])
        if 3 in row["query_ids"]:
            assert row["uid"] == min(uids[1:3])
    off = job_of(paths, drop_exact_duplicates=False, near_duplicate_bits=None)
    curate.run(off, paths)
    assert read_table(paths.table("united"), UNITED).num_rows == 0
    assert curated_of(paths)[uids[1]]["query_ids"] == [3, 7]


def test_near_pictures_are_one_and_others_are_not(tmp_path):
    picture = photo(1, 256)
    pairs = [
        Pair(jpeg(picture), "a picture"),
        Pair(jpeg(resized(picture, 128), 75), "the picture, smaller"),
        Pair(jpeg(resized(picture, 100), 60), "smaller still, from a third place"),
        Pair(jpeg(resized(picture, 128), 75), "its bytes again, under the longest caption"),
        Pair(jpeg(255 - picture), "the negative"),
        Pair(jpeg(picture[:, :, ::-1]), "with red and blue exchanged"),
        *(Pair(jpeg(photo(seed)), f"picture of {seed}") for seed in range(2, 20)),
    ]
    paths, uids = crawl(tmp_path, pairs)
    counts = curate.run(job_of(paths), paths)
    assert counts == {"fetched": 24, "near_duplicate": 2, "duplicate": 1, "curated": 21}
    kept, fates = curated_of(paths), fates_of(paths)
    assert set(kept[uids[3]]["captions"]) == {pair.caption for pair in pairs[:4]}
    assert fates[uids[1]] == ("rejected:duplicate", f"same bytes as {uids[3]}")
    for uid in (uids[0], uids[2]):
        status, detail = fates[uid]
        bits, told = detail.split(" bits from ")
        assert status == "rejected:near_duplicate" and told == uids[3] and 0 <= int(bits) <= 6
    off = job_of(paths, near_duplicate_bits=None)
    assert curate.run(off, paths) == {"fetched": 24, "duplicate": 1, "curated": 23}


def test_pictures_of_one_grey_are_not_compared(tmp_path):
    pairs = [
        Pair(jpeg(np.full((64, 64, 3), 100 + n, np.uint8)), f"grey number {n}") for n in range(4)
    ]
    pairs.append(Pair(jpeg(photo(0)), "a picture"))
    paths, uids = crawl(tmp_path, pairs)
    assert curate.run(job_of(paths), paths) == {"fetched": 5, "image_constant": 4, "curated": 1}
    assert fates_of(paths)[uids[0]] == (
        "rejected:image_constant",
        "deviation of grey levels 0.0 < 2",
    )
    kept = curate.run(job_of(paths, min_grey_std=None), paths)
    assert kept == {"fetched": 5, "curated": 5}


def test_captions_are_bounded(tmp_path):
    picture = jpeg(photo(0))
    paths, _ = crawl(tmp_path, [Pair(picture, f"caption {n} of it") for n in range(30)])
    curate.run(job_of(paths, max_captions=5), paths)
    ((_, row),) = curated_of(paths).items()
    assert len(row["captions"]) == len(set(row["captions"])) == 5
    assert row["captions"][0] == row["caption"]


def test_which_one_stays_does_not_depend_on_the_order_of_rows(tmp_path):
    pairs = [Pair(jpeg(photo(n % 5)), f"caption {n % 3}") for n in range(40)]
    kept = []
    for seed in range(2):
        shuffled = [(number, pair) for number, pair in enumerate(pairs)]
        random.Random(seed).shuffle(shuffled)
        for number, pair in shuffled:
            pair.values = {"uid": f"{number:032x}"}
        paths, _ = crawl(tmp_path / str(seed), [pair for _, pair in shuffled])
        curate.run(job_of(paths), paths)
        kept.append({uid: row["captions"] for uid, row in curated_of(paths).items()})
    assert kept[0] == kept[1] and len(kept[0]) == 5
