from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import curate
from data_tools.config import CurateConfig, DatasetJob
from data_tools.curate.stage import apply_rules
from data_tools.schema import CURATED, FATES, DataError, read_table
from tests.data_tools.tables import candidate, fetched, write_rows


def test_each_rule_takes_what_it_names_and_nothing_else(tmp_path):
    cases = [
        # caption, original width and height, sha256 -> fate ("" is curated)
        ("a red bird", 100, 80, "1", ""),
        ("x", 100, 80, "2", "rejected:caption_short"),
        ("\u00e9\u00e9", 100, 80, "3", ""),  # two characters, four bytes
        ("y" * 1000, 100, 80, "4", ""),
        ("y" * 1001, 100, 80, "5", "rejected:caption_long"),
        ("thin", 31, 80, "6", "rejected:image_small"),
        ("flat", 80, 31, "7", "rejected:image_small"),
        ("just", 32, 32, "8", ""),
        ("three to one", 300, 100, "9", ""),
        ("more", 301, 100, "10", "rejected:image_aspect"),
        ("tall", 100, 301, "11", "rejected:image_aspect"),
        ("a red bird", 100, 80, "12", ""),  # same caption, other image
        ("a blue bird", 100, 80, "1", ""),  # same image, other caption
        ("  white \n\t space ", 100, 80, "13", ""),
        ("  z  ", 100, 80, "14", "rejected:caption_short"),
    ]
    rows = [candidate(f"https://e.org/{n}", case[0]) for n, case in enumerate(cases)]
    images = [
        fetched(row["uid"], original_width=case[1], original_height=case[2], sha256=case[3])
        for row, case in zip(rows, cases, strict=True)
    ]
    paths = write_rows(tmp_path, rows, images)
    counts = curate.run(DatasetJob(), paths)
    assert counts == {
        "fetched": 15,
        "caption_short": 2,
        "caption_long": 1,
        "image_small": 2,
        "image_aspect": 2,
        "duplicate": 0,
        "curated": 8,
    }
    fates = {
        row["uid"]: row["status"] for row in read_table(paths.fates("curate"), FATES).to_pylist()
    }
    for row, case in zip(rows, cases, strict=True):
        assert fates.get(row["uid"], "") == case[4], case
    curated = {row["uid"]: row for row in read_table(paths.table("curated"), CURATED).to_pylist()}
    assert set(curated) == {r["uid"] for r, c in zip(rows, cases, strict=True) if not c[4]}
    assert curated[rows[13]["uid"]]["caption"] == "white space"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1), st.randoms())
def test_of_equal_pairs_one_stays_whatever_the_order(pairs, shuffler: random.Random):
    rows = [
        {**fetched(f"{n:032x}", sha256=f"image {image}"), "caption": f"caption {caption}"}
        for n, (image, caption) in enumerate(pairs)
    ]
    first: dict[tuple[int, int], str] = {}
    for n, pair in enumerate(pairs):
        first.setdefault(pair, f"{n:032x}")
    shuffler.shuffle(rows)
    table = pa.Table.from_pylist(rows, schema=CURATED)
    clean, rejected = apply_rules(table, CurateConfig())
    assert set(clean["uid"].to_pylist()) == set(first.values())
    assert len(rejected["duplicate"]) == len(pairs) - len(first)
    clean, _ = apply_rules(table, CurateConfig(drop_exact_duplicates=False))
    assert clean.num_rows == len(pairs)


def test_nothing_left_is_an_error_that_counts_the_rules(tmp_path):
    rows = [candidate(f"https://e.org/{n}", f"caption {n}") for n in range(5)]
    images = [fetched(row["uid"], original_width=8) for row in rows[:3]]
    images += [fetched(row["uid"], original_width=900) for row in rows[3:]]
    paths = write_rows(tmp_path, rows, images)
    with pytest.raises(DataError, match="none of 5 images: 3 image_small, 2 image_aspect. Loosen"):
        curate.run(DatasetJob(), paths)
    assert not paths.table("curated").exists()
    assert read_table(paths.fates("curate"), FATES).num_rows == 5


def test_a_kept_table_that_lost_rows_is_refused(tmp_path):
    rows = [candidate(f"https://e.org/{n}", f"caption {n}") for n in range(3)]
    paths = write_rows(tmp_path, rows[:2], [fetched(row["uid"]) for row in rows])
    with pytest.raises(DataError, match="1 fetched images are not among the kept pairs"):
        curate.run(DatasetJob(), paths)
