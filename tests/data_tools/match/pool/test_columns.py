"""Which column is which, and values of every type."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.config import PoolConfig, load_job
from data_tools.config.pool import problems
from tests.data_tools.match.pool.pool_files import pairs, pool, read

LAYOUTS = {
    "laion": {
        "URL": ["http://example.org/1.jpg"],
        "TEXT": ["a cat"],
        "WIDTH": [640.0],
        "HEIGHT": [480.0],
        "LICENSE": ["?"],
        "NSFW": ["UNLIKELY"],
    },
    "datacomp": {
        "uid": ["00"],
        "url": ["http://example.org/1.jpg"],
        "text": ["a cat"],
        "original_width": [640],
        "original_height": [480],
    },
    "coyo": {
        "id": [1],
        "url": ["http://example.org/1.jpg"],
        "text": ["a cat"],
        "width": [640],
        "height": [480],
        "nsfw_score_opennsfw2": [0.1],
    },
}


@pytest.mark.parametrize("preset", ["laion", "datacomp", "coyo", "cc3m", "cc12m", "redcaps"])
def test_layouts_of_published_pools(tmp_path, preset):
    url, caption = "http://example.org/1.jpg", "a cat"
    if preset in LAYOUTS:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(LAYOUTS[preset]), path)
    elif preset == "redcaps":
        path = tmp_path / "cats_2017.json"
        row = {
            "image_id": "x",
            "author": "y",
            "url": url,
            "raw_caption": "A CAT",
            "caption": caption,
        }
        path.write_text(json.dumps({"info": {"version": "1.0"}, "annotations": [row]}))
    else:
        path = tmp_path / "a.tsv"
        caption = 'a "cat'  # a quotation mark is text there
        path.write_text("\t".join([caption, url] if preset == "cc3m" else [url, caption]) + "\n")
    (tmp_path / "q.txt").write_text("cat\n")
    job = load_job(
        [
            f"out_dir={tmp_path}/out",
            f"queries.path={tmp_path}/q.txt",
            f"pool={preset}",
            "sources.contact=a@example.org",
            f"sources.pool.paths=[{path}]",
        ]
    )
    columns, _ = read(job.sources.pool)
    assert (columns["url"], columns["caption"]) == ([url], [caption])
    if preset in LAYOUTS:
        assert (columns["width"], columns["height"]) == ([640], [480])
    if preset in ("laion", "coyo"):
        assert columns["mature"] == [False]


def test_pools_of_two_layouts_in_one_job(tmp_path):
    pq.write_table(pa.table({"URL": ["http://x/1"], "TEXT": ["cat"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["http://x/2"], "text": ["dog"]}), tmp_path / "b.parquet")
    config = pool(f"{tmp_path}/*", url_column="URL|url", caption_column="TEXT|text")
    assert pairs(config) == [("http://x/1", "cat"), ("http://x/2", "dog")]


@pytest.mark.parametrize(
    ("values", "mature"),
    [
        (["NSFW", "UNSURE", "UNLIKELY", None], [True, None, False, None]),
        (["0.7", "0.2", "true", "no"], [True, False, True, False]),
        ([0.7, 0.2, None, float("nan")], [True, False, None, None]),
        ([True, False, None, True], [True, False, None, True]),
        ([[1], [2], None, []], [None] * 4),
    ],
)
def test_what_pools_say_of_mature_images(tmp_path, values, mature):
    table = pa.table({"url": ["http://x/1"] * 4, "caption": ["a"] * 4, "m": values})
    pq.write_table(table, tmp_path / "a.parquet")
    columns, _ = read(pool(f"{tmp_path}/a.parquet", mature_column="m"))
    assert columns["mature"] == mature


@pytest.mark.parametrize(
    ("values", "pixels"),
    [
        ([640, 0, -1, None], [640, None, None, None]),
        ([640.0, float("nan"), 1e12, float("inf")], [640, None, None, None]),
        (["640", " 480.0 ", "wide", ""], [640, 480, None, None]),
    ],
)
def test_widths_of_all_kinds(tmp_path, values, pixels):
    table = pa.table({"url": ["http://x/1"] * 4, "caption": ["a"] * 4, "w": values})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(pool(f"{tmp_path}/a.parquet", width_column="w"))[0]["width"] == pixels


def test_text_types_of_parquet(tmp_path):
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        plain = pa.array(["http://x/1", "http://x/2"])
        column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
        pq.write_table(pa.table({"url": column, "caption": column}), tmp_path / "a.parquet")
        assert [url for url, _ in pairs(pool(f"{tmp_path}/a.parquet"))] == plain.to_pylist()


def test_problems_of_the_settings():
    config = PoolConfig(enabled=True, url_column="URL|", storage_options={"client_secret": "x"})
    told = "\n".join(problems(config))
    assert "paths is empty" in told
    assert "url_column = 'URL|'" in told
    assert "client_secret" in told and "environment" in told
    assert problems(replace(config, enabled=False)) == []
