from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_tools import curate
from data_tools.config import DatasetJob, load_job
from data_tools.curate import features
from data_tools.tables.schema import CURATED, FATES, DataError, read_table
from tests.data_tools.curate.crawled import (
    Pair,
    crawl,
    curated_of,
    fates_of,
    job_of,
    jpeg,
    photo,
)
from tests.data_tools.made_tables import candidate, fetched, write_rows

NO_PIXELS = {"min_grey_std": None, "near_duplicate_bits": None}


def test_each_rule_takes_what_it_names_and_nothing_else(tmp_path):
    cases = [
        # caption, original width and height, sha256 -> fate ("" is curated), what the ledger says
        ("a red bird", 100, 80, "1", "", ""),
        ("x", 100, 80, "2", "rejected:caption_short", "1 characters < 2"),
        ("\u00e9\u00e9", 100, 80, "3", "", ""),  # two characters, four bytes
        ("y" * 1000, 100, 80, "4", "", ""),
        ("y" * 1001, 100, 80, "5", "rejected:caption_long", "1001 characters > 1000"),
        ("thin", 31, 80, "6", "rejected:image_small", "31 x 80: shorter side < 32"),
        ("flat", 80, 31, "7", "rejected:image_small", "80 x 31: shorter side < 32"),
        ("just", 32, 32, "8", "", ""),
        ("three to one", 300, 100, "9", "", ""),
        ("more", 301, 100, "10", "rejected:image_aspect", "301 x 100: aspect ratio > 3"),
        ("tall", 100, 301, "11", "rejected:image_aspect", "100 x 301: aspect ratio > 3"),
        ("a red bird", 100, 80, "12", "", ""),  # same caption, other image
        ("  white \n\t space ", 100, 80, "13", "", ""),
        ("  z  ", 100, 80, "14", "rejected:caption_short", "1 characters < 2"),
        ("IMG_1234.jpg", 100, 80, "15", "rejected:caption_file_name", "IMG_1234.jpg"),
        ("Image not available!", 9, 9, "16", "rejected:caption_boilerplate", "image not available"),
        ("caf\u00c3\u00a9 <b>noir</b>", 100, 80, "17", "", ""),
    ]
    rows = [candidate(f"https://e.org/{n}", case[0]) for n, case in enumerate(cases)]
    images = [
        fetched(row["uid"], original_width=case[1], original_height=case[2], sha256=case[3])
        for row, case in zip(rows, cases, strict=True)
    ]
    rows.append(candidate("https://e.org/m", "a nude", mature=True))
    images.append(fetched(rows[-1]["uid"], sha256="m"))
    paths = write_rows(tmp_path, rows, images)
    counts = curate.run(job_of(paths, **NO_PIXELS), paths)
    assert counts == {
        "fetched": 18,
        "caption_short": 2,
        "image_aspect": 2,
        "image_small": 2,
        "caption_boilerplate": 1,
        "caption_file_name": 1,
        "caption_long": 1,
        "mature": 1,
        "curated": 8,
    }
    fates, curated = fates_of(paths), curated_of(paths)
    assert fates.pop(rows[-1]["uid"]) == ("rejected:mature", "test flags it")
    for row, case in zip(rows, cases, strict=False):
        assert fates.get(row["uid"], ("", "")) == case[4:], case
    assert set(curated) == {r["uid"] for r, c in zip(rows, cases, strict=False) if not c[4]}
    assert curated[rows[12]["uid"]]["caption"] == "white space"
    assert curated[rows[16]["uid"]]["caption"] == "caf\u00e9 noir"
    assert curated[rows[16]["uid"]]["captions"] == ["caf\u00e9 noir"]


OFF = [
    "curate.repair_text=false",
    "curate.min_caption_chars=null",
    "curate.max_caption_chars=null",
    "curate.drop_file_names=false",
    "curate.drop_boilerplate=false",
    "curate.drop_mature=false",
    "curate.min_side=null",
    "curate.max_aspect_ratio=null",
    "curate.min_grey_std=null",
    "curate.drop_exact_duplicates=false",
    "curate.near_duplicate_bits=null",
]


def test_every_rule_can_be_switched_off_from_the_command_line(tmp_path):
    picture = photo(0)
    pairs = [
        Pair(jpeg(picture), "IMG_1234.jpg"),
        Pair(jpeg(picture), "<b>x</b>"),
        Pair(jpeg(picture, 90), "placeholder", {"mature": True}),
        Pair(jpeg(picture[:8]), "y" * 1001),
        Pair(jpeg(picture * 0), "z"),
    ]
    paths, uids = crawl(tmp_path, pairs)
    (tmp_path / "q.txt").write_text("a bird\n")
    common = [f"out_dir={tmp_path}", f"queries.path={tmp_path}/q.txt", "source=commons"]
    common += ["sources.contact=crawler@example.org", "curate.processes=1"]
    job = load_job([*common, *OFF])
    assert curate.run(job, paths) == {"fetched": 5, "curated": 5}
    assert curated_of(paths)[uids[1]]["caption"] == "<b>x</b>"
    assert not features.folder(paths).exists(), "nothing was decoded that no rule asked for"
    with pytest.raises(DataError, match="none of 5 images: "):
        curate.run(load_job(common), paths)


def test_nothing_left_is_an_error_that_counts_the_rules(tmp_path):
    rows = [candidate(f"https://e.org/{n}", f"caption {n}") for n in range(5)]
    images = [fetched(row["uid"], original_width=8) for row in rows[:3]]
    images += [fetched(row["uid"], original_width=900) for row in rows[3:]]
    paths = write_rows(tmp_path, rows, images)
    with pytest.raises(DataError, match="none of 5 images: 3 image_small, 2 image_aspect. Loosen"):
        curate.run(job_of(paths, **NO_PIXELS), paths)
    assert not paths.table("curated").exists()
    assert read_table(paths.fates("curate"), FATES).num_rows == 5


def test_a_kept_table_that_lost_rows_is_refused(tmp_path):
    rows = [candidate(f"https://e.org/{n}", f"caption {n}") for n in range(3)]
    paths = write_rows(tmp_path, rows[:2], [fetched(row["uid"]) for row in rows])
    with pytest.raises(DataError, match="1 fetched images are not among the kept pairs"):
        curate.run(job_of(paths), paths)


def test_a_stage_that_was_not_run_is_named(tmp_path):
    paths, _ = crawl(tmp_path, [Pair(jpeg(photo(0)), "a picture")])
    paths.table("fetched").unlink()
    with pytest.raises(DataError, match="fetched.parquet does not exist: run the stage"):
        curate.run(job_of(paths), paths)


def test_the_output_depends_on_nothing_but_the_input(tmp_path):
    """Two processes or one, rows in another order."""
    pairs = [Pair(jpeg(photo(n % 37, 64 + n % 3)), f"caption {n % 41} of many") for n in range(90)]
    digests = set()
    for processes, order in ((1, "uid"), (2, "sha256")):
        paths, _ = crawl(tmp_path / str(processes), pairs)
        table = pq.read_table(paths.table("fetched")).sort_by(order)
        pq.write_table(table, paths.table("fetched"))
        curate.run(job_of(paths, processes=processes), paths)
        content = [paths.table("curated").read_bytes(), paths.fates("curate").read_bytes()]
        digests.add(hashlib.sha256(b"".join(content)).hexdigest())
    assert len(digests) == 1


def test_a_killed_run_goes_on_and_ends_like_another(tmp_path, monkeypatch):
    """kill -9 while it decodes: pieces that were done are not decoded again."""
    pairs = [Pair(jpeg(photo(n)), f"caption {n} of many") for n in range(100)]
    paths, _ = crawl(tmp_path / "killed", pairs)
    script = (
        "import sys, time; from data_tools.curate import features as f, run\n"
        "from data_tools.tables.schema import DatasetPaths; from pathlib import Path\n"
        "from tests.data_tools.curate.crawled import job_of\n"
        "write = f.write_piece\n"
        "def slow(piece): time.sleep(0.3); return write(piece)\n"
        "f.write_piece = slow\n"
        "paths = DatasetPaths(Path(sys.argv[1])); run(job_of(paths), paths)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(paths.root)])
    deadline = time.monotonic() + 60
    while len(list(features.folder(paths).glob("*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    done = {file.name: file.stat().st_mtime_ns for file in features.folder(paths).glob("*.parquet")}
    assert 2 <= len(done) < 5
    counts = curate.run(job_of(paths), paths)
    assert counts == {"fetched": 100, "curated": 100}
    after = {file.name: file.stat().st_mtime_ns for file in features.folder(paths).iterdir()}
    assert len(after) == 5 and done.items() <= after.items()
    undisturbed, _ = crawl(tmp_path / "whole", pairs)
    curate.run(job_of(undisturbed), undisturbed)
    assert curated_of(paths) == curated_of(undisturbed)
    assert sorted(file.name for file in (paths.root / "tables").iterdir()) == sorted(
        file.name for file in (undisturbed.root / "tables").iterdir()
    ), "nothing of the killed run is left"


def test_changing_a_rule_decodes_nothing(tmp_path, monkeypatch):
    pairs = [Pair(jpeg(photo(n // 2), 95 - n % 2), f"caption {n} of many") for n in range(10)]
    paths, _ = crawl(tmp_path, pairs)
    assert curate.run(job_of(paths), paths) == {"fetched": 10, "near_duplicate": 5, "curated": 5}
    monkeypatch.setattr(features, "write_piece", None)
    counts = curate.run(job_of(paths, near_duplicate_bits=None), paths)
    assert counts == {"fetched": 10, "curated": 10}


def test_an_image_that_was_changed_after_the_crawl_is_named(tmp_path):
    paths, _ = crawl(tmp_path, [Pair(jpeg(photo(n)), f"caption {n}") for n in range(3)])
    tar = paths.crawl / "part-00000/images/00000.tar"
    with tar.open("r+b") as file:
        file.seek(512)
        file.write(b"\0" * 300)
    with pytest.raises(DataError, match="00000.tar has no image at 512.*run the crawl again"):
        curate.run(job_of(paths), paths)
    tar.unlink()
    with pytest.raises(DataError, match="00000.tar is gone: run the crawl again"):
        curate.run(job_of(paths), paths)
    assert not paths.table("curated").exists()


def test_an_unwritable_target_is_told(tmp_path):
    """A file where the stage wants a folder: that stops root, too."""
    paths, _ = crawl(tmp_path, [Pair(jpeg(photo(0)), "a bird")])
    features.folder(paths).write_text("in the way")
    with pytest.raises(DataError, match="cannot curate below .*features.*Make room there and run"):
        curate.run(job_of(paths), paths)
    features.folder(paths).unlink()
    assert curate.run(job_of(paths), paths) == {"fetched": 1, "curated": 1}
    (paths.root / "tables" / "fates" / "curate.parquet").unlink()
    paths.table("curated").unlink()
    paths.table("curated").mkdir()
    with pytest.raises(DataError, match="cannot curate below"):
        curate.run(job_of(paths), paths)


def test_the_schema_is_that_of_the_contract(tmp_path):
    paths, _ = crawl(Path(tmp_path), [Pair(jpeg(photo(0)), "a picture")])
    curate.run(DatasetJob(out_dir=str(tmp_path)), paths)
    assert pq.read_schema(paths.table("curated")).equals(CURATED)
