"""Several ranks: every rank knows the same, whatever their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.distributed.group import PeerError
from pipeline.metrics import MetricsProcessor
from pipeline.state import Interval, TrainState
from tests.gloo import run_gloo
from tests.pipeline.metrics.steps import GLOBAL_BATCH, job, lines, step_metrics, take, world


def _log(rank: int, world_size: int, run_dir: Path) -> list[Interval]:
    """Two lines of three steps. Row r of the global batch has loss step + r / 8; step 2 is skipped,
    its loss is NaN on the last rank; rank 1 is slow."""
    metrics = MetricsProcessor(job(run_dir), world(rank, world_size))
    state = TrainState()
    metrics.start(state)
    share = GLOBAL_BATCH // world_size
    intervals = []
    for step in range(6):
        rows = range(rank * share, rank * share + share)
        loss = step + sum(row / 8 for row in rows) / share
        if step == 2 and rank == world_size - 1:
            loss = float("nan")
        take(
            metrics,
            state,
            step_metrics(
                loss,
                skipped=step == 2,
                top1=[(rank + 1) / 8, 0.5],
                towers_s=3.0 if rank == 1 else 1.0 + step / 100,
            ),
            keys=[str(step * GLOBAL_BATCH + row) for row in rows],
            num_replaced=rank,
        )
        if step % 3 == 2:
            intervals.append(metrics.log(state))
    metrics.close()
    return intervals


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[int, tuple[Path, list[list[Interval]]]]:
    result = {}
    for world_size in (1, 2, 4):
        run_dir = tmp_path_factory.mktemp(f"ranks{world_size}")
        result[world_size] = (run_dir, run_gloo(_log, world_size, run_dir))
    return result


def test_every_rank_has_the_same_intervals(told):
    for _, ranks in told.values():
        assert [repr(intervals) for intervals in ranks] == [repr(ranks[0])] * len(ranks)
    first, second = told[4][1][0]
    assert (first.first_step, second.first_step) == (0, 3)
    assert first.skipped == [False, False, True] and second.skipped == [False] * 3
    assert second.losses == [3.4375, 4.4375, 5.4375]


def test_losses_and_checksums_do_not_depend_on_the_number_of_ranks(told):
    names = ("train/loss", "train/loss_mean", "data/key_checksum", "train/skipped_steps")
    written = [
        [{name: repr(line[name]) for name in names} for line in lines(run_dir / "metrics.jsonl")]
        for run_dir, _ in told.values()
    ]
    assert written[0] == written[1] == written[2]
    assert written[0][0]["data/key_checksum"] != written[0][1]["data/key_checksum"]


def test_means_sums_and_extremes_over_ranks(told):
    first, second = lines(told[4][0] / "metrics.jsonl")
    assert second["train/top1_image_to_text"] == (1 + 2 + 3 + 4) / 8 / 4
    assert second["data/replaced_samples"] == 3 * (0 + 1 + 2 + 3)
    assert second["data/wait_s"] == 0.5
    assert second["perf/towers_s_slowest"] == 3.0
    assert second["perf/towers_s_median"] == pytest.approx(1.04)  # the median step is the middle
    assert second["train/grad_norm"] == 5.0
    assert second["perf/samples_per_second_per_rank"] * 4 == pytest.approx(
        second["perf/samples_per_second"]
    )


def test_each_rank_writes_down_its_keys_of_a_skipped_step(told):
    run_dir = told[4][0]
    found = [lines(run_dir / "skipped" / f"rank_{rank:05d}.jsonl") for rank in range(4)]
    assert [record["rank"] for (record,) in found] == [0, 1, 2, 3]
    assert {record["step"] for (record,) in found} == {3}
    assert {record["samples_seen"] for (record,) in found} == {16}
    keys = [key for (record,) in found for key in record["keys"]]
    assert keys == [str(key) for key in range(16, 24)]


def _resume(rank: int, world_size: int, run_dir: Path) -> None:
    metrics = MetricsProcessor(job(run_dir), world(rank, world_size))
    metrics.start(TrainState(2, 2 * GLOBAL_BATCH))
    metrics.close()


def test_every_rank_forgets_skipped_steps_that_come_again(tmp_path):
    run_gloo(_log, 2, tmp_path)
    run_gloo(_resume, 2, tmp_path)
    for rank in range(2):
        assert lines(tmp_path / "skipped" / f"rank_{rank:05d}.jsonl") == []


def _open_where_it_cannot(rank: int, world_size: int, run_dir: Path) -> str:
    try:
        MetricsProcessor(job(run_dir), world(rank, world_size))
    except (OSError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


def test_what_cannot_be_opened_is_refused_on_every_rank(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    own, peer = run_gloo(_open_where_it_cannot, 2, tmp_path)
    assert own.startswith("IsADirectoryError") and "metrics.jsonl" in own
    assert peer.startswith("PeerError: could not open the metrics of the run: rank 0 of 2")
