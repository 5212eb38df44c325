"""The best part of a scored data set: exact, in order, readable, accounted for."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.dataset.manifest import load_manifest, verify_checksums
from data_tools.dataset.scores import add_to_ledger, scores_path, write_scores
from data_tools.subset import main
from data_tools.tables.schema import LEDGER
from tests.pipeline.data.made_shards import make_samples, write_shards

NUM = 23


@pytest.fixture
def scored(tmp_path):
    """(manifest, score by key): two equal scores at the border of a third, one sample without."""
    path = write_shards(tmp_path / "data", make_samples(NUM), per_shard=10)
    manifest = load_manifest(path)
    keys = [f"s{n:08d}" for n in range(NUM)]
    values = np.random.default_rng(0).permutation(NUM) / NUM
    scores = {key: float(np.float32(value)) for key, value in zip(keys, values)}
    scores[keys[4]] = None
    ranked = sorted((k for k in keys if scores[k] is not None), key=lambda k: -scores[k])
    scores[ranked[7]] = scores[ranked[6]]
    for shard in manifest.shards:
        own = pq.read_table(manifest.index_path(shard))["key"].to_pylist()
        write_scores(scores_path(manifest, shard), own, [scores[k] for k in own], "model@1 shard x")
    return path, scores


def samples(path):
    manifest = load_manifest(path)
    verify_checksums(manifest)
    for shard in manifest.shards:
        with manifest.shard_path(shard).open("rb") as file:
            for row in pq.read_table(manifest.index_path(shard)).to_pylist():
                parts = (
                    os.pread(file.fileno(), row[f"{part}_size"], row[f"{part}_offset"])
                    for part in ("image", "text", "json")
                )
                yield row["key"], *parts


def test_a_share_is_exact_and_keeps_the_order(scored, tmp_path, capsys):
    path, scores = scored
    out = tmp_path / "best"
    command = [f"manifest={path}", f"out_dir={out}", f"keep_share={7 / 22}", "samples_per_shard=4"]
    assert main(command) == 0
    ranked = sorted((k for k in scores if scores[k] is not None), key=lambda k: (-scores[k], k))
    kept = list(samples(out / "manifest.json"))
    assert [key for key, *_ in kept] == sorted(ranked[:7])
    source = {key: rest for key, *rest in samples(path)}
    for key, image, text, metadata in kept:
        assert [image, text] == source[key][:2]
        assert json.loads(metadata) == json.loads(source[key][2])
    assert json.loads((out / "shards" / "sizes.json").read_text()) == {
        "000000.tar": 4,
        "000001.tar": 3,
    }
    assert "7 of 23 pairs" in capsys.readouterr().out


def test_a_lowest_score_takes_all_from_it_on(scored, tmp_path):
    path, scores = scored
    lowest = sorted(value for value in scores.values() if value is not None)[-5]
    assert main([f"manifest={path}", f"out_dir={tmp_path / 'best'}", f"min_score={lowest!r}"]) == 0
    expected = [key for key, value in scores.items() if value is not None and value >= lowest]
    assert [key for key, *_ in samples(tmp_path / "best" / "manifest.json")] == expected


def test_the_ledger_says_what_was_left_out(scored, tmp_path):
    path, scores = scored
    uids = sorted([*scores, "found-and-lost"])
    rows = [{"uid": u, "status": "packed" if u in scores else "failed:dns"} for u in uids]
    ledger = path.parent / "ledger.parquet"
    pq.write_table(pa.Table.from_pylist(rows, LEDGER), ledger)
    assert add_to_ledger(load_manifest(path)) == NUM - 1
    assert main([f"manifest={path}", f"out_dir={tmp_path / 'best'}", "keep_share=0.5"]) == 0
    table = pq.read_table(tmp_path / "best" / "ledger.parquet")
    assert table.schema.names == LEDGER.names
    status = dict(zip(table["uid"].to_pylist(), table["status"].to_pylist()))
    kept = {key for key, *_ in samples(tmp_path / "best" / "manifest.json")}
    assert status["found-and-lost"] == "failed:dns"
    assert {uid for uid, word in status.items() if word == "packed"} == kept
    assert sum(word == "dropped:score" for word in status.values()) == NUM - len(kept)


def test_two_runs_give_the_same_bytes(scored, tmp_path):
    path, _ = scored
    for name in ("one", "two"):
        assert main([f"manifest={path}", f"out_dir={tmp_path / name}", "keep_share=0.4"]) == 0
    one, two = (load_manifest(tmp_path / name / "manifest.json") for name in ("one", "two"))
    assert one.shards == two.shards and one.config_fingerprint == two.config_fingerprint


def test_refusals(scored, tmp_path, capsys):
    path, _ = scored
    assert main(["out_dir=x", "keep_share=2", "min_score=0.1"]) == 2
    error = capsys.readouterr().err
    assert all(told in error for told in ("manifest is not given", "give one of", "keep_share=2"))
    (tmp_path / "there").mkdir()
    assert main([f"manifest={path}", f"out_dir={tmp_path / 'there'}", "keep_share=0.1"]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err
    assert main([f"manifest={path}", f"out_dir={tmp_path / 'none'}", "min_score=1"]) == 1
    assert "none of 22 scored pairs" in capsys.readouterr().err
    scores_path(load_manifest(path), load_manifest(path).shards[1]).unlink()
    assert main([f"manifest={path}", f"out_dir={tmp_path / 'none'}", "keep_share=0.5"]) == 1
    assert "1 of 3 shards" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
