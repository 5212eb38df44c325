"""The crawl stage with the real img2dataset: what arrives, what a second run does, what is
refused."""

from __future__ import annotations

import fcntl
import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import crawl
from data_tools.tables.schema import FATES, DataError, DatasetPaths, read_table
from data_tools.work.tasks import Task
from tests.data_tools.crawl import pictures
from tests.data_tools.crawl.conftest import CRAWLED
from tests.data_tools.crawl.hostile_server import hostile_site
from tests.data_tools.crawl.jobs import fetched_rows, make_job, stored_image, write_kept


def test_every_kept_pair_has_its_fate(crawled):
    fates = read_table(crawled.paths.fates("crawl"), FATES).to_pylist()
    by_uid = {row["uid"]: row["status"] for row in fates}
    assert len(fates) == len(CRAWLED)
    assert {path: by_uid[crawled.uid(path)] for path in CRAWLED} == CRAWLED
    assert crawled.counts == {"kept": 51, "fetched": 45, "failed": 2, "rejected": 4}
    assert set(fetched_rows(crawled.paths)) == {
        crawled.uid(path) for path, fate in CRAWLED.items() if fate == "fetched"
    }


def test_rows_describe_the_stored_and_the_original_image(crawled):
    rows = fetched_rows(crawled.paths)
    large = rows[crawled.uid("/large.jpg")]
    assert (large["original_width"], large["original_height"]) == (900, 600)
    assert (large["width"], large["height"]) == (96, 64)
    assert large["sha256"] == hashlib.sha256(pictures.jpeg(900, 600)).hexdigest()
    for row in rows.values():
        assert stored_image(crawled.paths, row).shape[:2] == (row["height"], row["width"])


def test_small_images_are_not_enlarged(crawled):
    row = fetched_rows(crawled.paths)[crawled.uid("/icon.gif")]
    assert (row["width"], row["height"]) == (9, 9)


def test_what_img2dataset_damages_arrives_whole(crawled):
    rows = fetched_rows(crawled.paths)
    assert np.all(stored_image(crawled.paths, rows[crawled.uid("/16bit.png")]) == 100)
    rotated = stored_image(crawled.paths, rows[crawled.uid("/rotated.jpg")])
    upright = np.asarray(pictures.gradient()).astype(int)
    assert rotated.shape == upright.shape and np.abs(rotated - upright).mean() < 5
    transparent = stored_image(crawled.paths, rows[crawled.uid("/transparent.png")])
    assert transparent[20, 50].min() > 250 and transparent[20, 10, 0] > 240


def test_a_second_run_fetches_nothing_and_gives_the_same(crawled):
    before = sum(crawled.site.requests.values())
    assert crawl.run(crawled.job, crawled.paths) == crawled.counts
    assert sum(crawled.site.requests.values()) == before


def test_other_rows_or_settings_are_refused_and_not_mixed_in(crawled, tmp_path):
    job = make_job(tmp_path, allow_private=[crawled.site.host], samples_per_part=30)
    urls = [row["url"] for row in crawled.rows]
    captions = [row["caption"] for row in crawled.rows]
    paths = DatasetPaths(tmp_path)
    shutil.copytree(crawled.paths.crawl, tmp_path / "crawl")
    write_kept(tmp_path, urls, captions)
    assert crawl.run(job, paths) == crawled.counts, "the same rows and settings are accepted"
    job.crawl.encode_quality = 50
    with pytest.raises(DataError, match="part-00000 was crawled from other rows or with other"):
        crawl.run(job, paths)
    job.crawl.encode_quality = 95
    job.crawl.threads = 3
    assert crawl.run(job, paths) == crawled.counts, "speed is not a setting of the data"
    write_kept(tmp_path, urls[:-1], captions[:-1])
    with pytest.raises(DataError, match="delete .*crawl to crawl again"):
        crawl.run(job, paths)


@pytest.mark.slow
def test_a_folder_may_have_any_name(tmp_path):
    """It goes through DuckDB, two processes' command lines and img2dataset's file system layer."""
    out_dir = tmp_path / "run[1]" / "it's" / "q?x*" / "a b#c"
    with hostile_site() as site:
        write_kept(out_dir, [site.url(f"/n/{number}.jpg") for number in range(6)])
        paths = DatasetPaths(out_dir)
        counts = crawl.run(make_job(out_dir, allow_private=[site.host]), paths)
    assert counts == {"kept": 6, "fetched": 6, "failed": 0, "rejected": 0}
    assert len(fetched_rows(paths)) == 6


@pytest.mark.slow
def test_no_image_at_all_is_an_error_with_counts_and_a_fix(tmp_path):
    with hostile_site(robots=404) as site:
        write_kept(tmp_path, [site.url(f"/status/404?{n}") for n in range(5)])
        job = make_job(tmp_path, allow_private=[site.host])
        with pytest.raises(DataError, match="no image of 5 URLs: 5 failed:http_404. Do the URLs"):
            crawl.run(job, DatasetPaths(tmp_path))
    assert read_table(DatasetPaths(tmp_path).fates("crawl"), FATES).num_rows == 5
    assert not list((tmp_path / "crawl").glob("part-*")), "the next run tries again"
    assert not DatasetPaths(tmp_path).table("fetched").exists()


def test_nothing_kept_is_an_error(tmp_path):
    write_kept(tmp_path, [])
    with pytest.raises(DataError, match="no pair was kept"):
        crawl.run(make_job(tmp_path), DatasetPaths(tmp_path))


@pytest.mark.slow
def test_a_url_with_several_captions_is_fetched_once_and_given_to_all(tmp_path):
    with hostile_site() as site:
        urls = [site.url("/n/1.jpg")] * 3 + [site.url("/n/2.jpg"), site.url("/status/404")] * 2
        rows = write_kept(tmp_path, urls)
        paths = DatasetPaths(tmp_path)
        counts = crawl.run(make_job(tmp_path, allow_private=[site.host]), paths)
        assert counts == {"kept": 7, "fetched": 5, "failed": 2, "rejected": 0}
        assert site.requests["/n/1.jpg"] == site.requests["/n/2.jpg"] == 1
    fetched = fetched_rows(paths)
    assert len({fetched[row["uid"]]["offset"] for row in rows[:3]}) == 1
    assert fetched[rows[0]["uid"]]["offset"] != fetched[rows[3]["uid"]]["offset"]
    fates = read_table(paths.fates("crawl"), FATES)
    assert sorted(fates["uid"].to_pylist()) == sorted(row["uid"] for row in rows)


@pytest.mark.slow
def test_a_retry_round_asks_again_for_what_may_have_passed_and_for_nothing_else(tmp_path):
    with hostile_site() as site:
        passing = [f"/flaky/{number}.jpg" for number in range(4)]
        lasting = ["/status/404", "/noai.jpg", "/forbidden/a.jpg", "/drawing.svg"]
        urls = [site.url(path) for path in ["/n/1.jpg", "/status/503", *passing, *lasting]]
        rows = write_kept(tmp_path, [*urls, urls[2]])
        paths = DatasetPaths(tmp_path)
        job = make_job(tmp_path, allow_private=[site.host])
        first = crawl.run(job, paths)
        assert first == {"kept": 11, "fetched": 1, "failed": 7, "rejected": 3}
        asked = site.requests.copy()
        site.flaky_status = 200
        job.crawl.retry_rounds = 1
        second = crawl.run(job, paths)
        assert second == {
            **{"kept": 11, "fetched": 6, "failed": 2, "rejected": 3},
            **{"retried": 6, "recovered": 5},
        }
        for path in ["/n/1.jpg", *lasting]:
            assert site.requests[path] == asked[path], "not asked again"
        assert site.requests["/flaky/0.jpg"] == asked["/flaky/0.jpg"] + 1
        again = site.requests.copy()
        assert crawl.run(job, paths) == second and site.requests == again
        job.crawl.retry_rounds = 2
        third = crawl.run(job, paths)
        assert (third["fetched"], third["retried"], third["recovered"]) == (6, 7, 5)
    fates = read_table(paths.fates("crawl"), FATES)
    assert sorted(fates["uid"].to_pylist()) == sorted(row["uid"] for row in rows), "each once"
    for row in fetched_rows(paths).values():
        assert stored_image(paths, row).size


@pytest.mark.slow
def test_tasks_crawl_their_own_parts_and_leave_those_of_others_alone(tmp_path):
    with hostile_site() as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(30)])
        paths = DatasetPaths(tmp_path)
        job = make_job(tmp_path, allow_private=[site.host], samples_per_part=10)
        job.crawl.retry_rounds = 1
        of_another = paths.crawl / ".part-00001.0123abcd.tmp"
        of_a_killed_one = paths.crawl / ".part-00000.0123abcd.tmp"
        for folder in (of_another, of_a_killed_one):
            folder.mkdir(parents=True)
        assert crawl.run_share(job, paths, Task(0, 2)) == {"parts": 2, "rows": 20}
        assert of_another.exists() and not of_a_killed_one.exists()
        parts = {path.name for path in paths.crawl.glob("part-*")}
        assert parts == {"part-00000", "part-00002"}
        assert not (paths.crawl / "retry-01").exists(), "the round before is not done"
        asked = sum(site.requests.values())
        assert crawl.run_share(job, paths, Task(0, 2)) == {"parts": 2, "rows": 20}
        assert sum(site.requests.values()) == asked
        counts = crawl.run(job, paths)
        assert counts == {"kept": 30, "fetched": 30, "failed": 0, "rejected": 0}
        assert sum(site.requests.values()) == asked + 10 + 2, "and its two files"


@pytest.mark.slow
def test_two_processes_at_one_part_are_told(tmp_path):
    with hostile_site() as site:
        write_kept(tmp_path, [site.url("/n/1.jpg")])
        paths = DatasetPaths(tmp_path)
        aside = paths.crawl / ".part-00000.0123abcd.tmp"
        aside.mkdir(parents=True)
        with (aside / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(DataError, match="another process is crawling .*part-00000"):
                crawl.run(make_job(tmp_path, allow_private=[site.host]), paths)
        assert aside.exists()
        crawl.run(make_job(tmp_path, allow_private=[site.host]), paths)
        assert not aside.exists()


@pytest.mark.slow
def test_faces_are_blurred_and_images_of_unknown_faces_not_asked_for(tmp_path):
    with hostile_site() as site:
        urls = {path: site.url(path) for path in ("/large.jpg", "/n/1.jpg", "/rotated.jpg")}
        unknown = site.url("/n/2.jpg")
        rows = write_kept(tmp_path, [*urls.values(), unknown])
        face = [[0.25, 0.25, 0.75, 0.75]]
        boxes = {"url": list(urls.values()), "face_bboxes": [face, [], face]}
        pq.write_table(pa.table(boxes), tmp_path / "boxes.parquet")
        job = make_job(tmp_path, allow_private=[site.host], image_size=600)
        job.crawl.face_boxes.paths = [str(tmp_path / "boxes.parquet")]
        paths = DatasetPaths(tmp_path)
        crawl.run(job, paths)
        assert site.requests["/n/2.jpg"] == 0
    fates = {
        row["uid"]: row["status"] for row in read_table(paths.fates("crawl"), FATES).to_pylist()
    }
    assert [fates[row["uid"]] for row in rows] == [
        "fetched",
        "fetched",
        "rejected:turned_face_boxes",
        "rejected:no_face_boxes",
    ]
    stored = stored_image(paths, fetched_rows(paths)[rows[0]["uid"]])
    plain = pictures.decode(pictures.jpeg(900, 600)).astype(int)
    assert stored.shape == plain.shape
    changed = np.abs(stored - plain).mean(axis=2)
    assert changed[250:350, 400:500].mean() > 3 * changed[:40, :40].mean() + 0.5
    with pytest.raises(DataError, match="other rows or with other settings"):
        job.crawl.face_boxes.paths = []
        crawl.run(job, paths)


@pytest.mark.slow
def test_options_pass_through_to_img2dataset(tmp_path):
    """Larger than it came, which the stage by itself never stores."""
    with hostile_site() as site:
        (row,) = write_kept(tmp_path, [site.url("/ok.jpg")])
        job = make_job(tmp_path, allow_private=[site.host])
        job.crawl.img2dataset = {"resize_only_if_bigger": False, "upscale_interpolation": "nearest"}
        paths = DatasetPaths(tmp_path)
        crawl.run(job, paths)
    stored = fetched_rows(paths)[row["uid"]]
    assert (stored["width"], stored["height"]) == (96, 64)
    assert (stored["original_width"], stored["original_height"]) == (60, 40)
