"""Folders whose names mean something else in SQL, in a glob or in a URL."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_tools import curate, pack, rebalance, report
from data_tools.config import ClassifierConfig
from data_tools.dataset.audit import audit
from data_tools.dataset.manifest import load_manifest
from data_tools.dataset.scores import add_to_ledger, scores_path, write_scores
from data_tools.dataset.subset import select, write_subset
from tests.data_tools.stages import crawled_job, make_job

NAMES = ["run[1]", "it's", "q?x*", "a b#c", "\u00fc", "[*?]'\"; --"]


class FirstLetters:
    """A classifier whose score is a number that the pair alone decides."""

    def score(self, images: list[bytes], captions: list[str]) -> list[float]:
        return [len(image) % 7 + len(caption) % 3 for image, caption in zip(images, captions)]


def all_stages(root: Path, num_kept: int = 60) -> dict[str, bytes]:
    """Run every stage after the crawl, the scores and a subset; return the content of the files
    that should not depend on the folder's name."""
    paths, job = crawled_job(root / "data", num_kept=num_kept), make_job(root / "data", 20)
    target = f"{FirstLetters.__module__}:{FirstLetters.__name__}"
    job.curate.classifiers = [ClassifierConfig(target=target, min_score=1.0)]
    for stage in (curate, rebalance, pack, report):
        stage.run(job, paths)
    manifest = load_manifest(paths.manifest)
    assert audit(manifest, num_decoded=5).problems == []
    for shard in manifest.shards:
        keys = pq.read_table(manifest.index_path(shard))["key"].to_pylist()
        write_scores(
            scores_path(manifest, shard), keys, [int(key[:4], 16) for key in keys], "model@1 shard"
        )
    assert add_to_ledger(manifest) == manifest.num_samples
    selection = select(manifest, keep_share=0.5, min_score=None)
    write_subset(manifest, selection, root / "best", samples_per_shard=10)
    files = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in files.items()
        if name.parts[:3] != ("data", "tables", "scores")  # random names
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return all_stages(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_the_folder_changes_nothing(tmp_path, plain, name):
    made = all_stages(tmp_path / name)
    assert "data/report.html" in made and "best/ledger.parquet" in made
    assert {file for file in made if made[file] != plain.get(file)} == set()
    assert set(made) == set(plain)


@pytest.mark.parametrize(("name", "sibling"), [("run[1]", "run1"), ("q?x*", "qaxb")])
def test_a_folder_that_the_name_would_match_is_not_read(tmp_path, plain, name, sibling):
    others = all_stages(tmp_path / sibling, num_kept=40)
    assert others["data/ledger.parquet"] != plain["data/ledger.parquet"]
    made = all_stages(tmp_path / name)
    assert {file for file in made if made[file] != plain[file]} == set()
