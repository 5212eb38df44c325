"""One process: what is written, what a resumed run drops, and that nothing waits for the device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pipeline.metrics import MetricsProcessor, processor
from pipeline.metrics.record import RecordError
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, lines, step_metrics, take, world

pytestmark = pytest.mark.usefixtures("alone")

WAITS = ("item", "__float__", "__bool__", "__int__", "tolist", "cpu", "numpy", "__array__")


def opened(run_dir: Path, state: TrainState | None = None, **logging) -> MetricsProcessor:
    metrics = MetricsProcessor(job(run_dir, **logging), world())
    metrics.start(state or TrainState())
    return metrics


def test_a_line_has_every_name(tmp_path):
    metrics, state = opened(tmp_path), TrainState(rollbacks=1)
    take(metrics, state, step_metrics(4.0))
    take(metrics, state, step_metrics(2.0, lr=0.25, top1=[0.5, 0.75]), num_replaced=3)
    interval = metrics.log(state)
    assert (interval.first_step, interval.losses, interval.skipped) == (0, [4, 2], [False, False])
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert {name: line[name] for name in line if not name.startswith("perf/")} == {
        "step": 2,
        "train/loss": 2.0,
        "train/loss_mean": 3.0,
        "train/logit_scale": pytest.approx(math.exp(2.7)),
        "train/lr": 0.25,
        "train/grad_norm": 5.0,
        "train/grad_norm_image": 3.0,
        "train/grad_norm_text": 4.0,
        "train/top1_image_to_text": 0.5,
        "train/top1_text_to_image": 0.75,
        "train/skipped_steps": 0,
        "train/rollbacks": 1,
        "train/samples_seen": 16,
        "data/wait_s": 0.5,
        "data/wait_share": line["data/wait_share"],
        "data/equal_captions": 0.0,
        "data/replaced_samples": 3,
        "data/key_checksum": line["data/key_checksum"],
    }
    assert {name for name in line if name.startswith("perf/")} == {
        "perf/samples_per_second",
        "perf/samples_per_second_per_rank",
        "perf/step_s",
        "perf/tflops_per_rank",
        "perf/memory_gib",
        "perf/towers_s_median",
        "perf/towers_s_slowest",
    }  # no perf/mfu: the peak of a CPU is not known
    assert line["perf/towers_s_median"] == line["perf/towers_s_slowest"] == 0.25
    assert line["perf/memory_gib"] > 0.01


def test_rates_count_the_interval_without_what_stops_the_clock(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(processor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(processor, "peak_of", lambda device, precision: 0.096)
    metrics, state = opened(tmp_path), TrainState()
    for _ in range(4):
        take(metrics, state)
    with metrics.clock_stopped():
        now[0] += 1000
    now[0] += 2
    metrics.log(state)
    take(metrics, state)
    now[0] += 1
    metrics.log(state)
    first, second = lines(tmp_path / "metrics.jsonl")
    assert (first["perf/step_s"], second["perf/step_s"]) == (0.5, 1.0)
    assert first["perf/samples_per_second"] == 16
    assert first["data/wait_share"] == 1.0  # 0.5 s of 0.5 s
    # 4 steps x 8 samples x 3 x 1 GFLOP in 2 s = 0.048 TFLOP/s
    assert first["perf/tflops_per_rank"] == pytest.approx(0.048)
    assert first["perf/mfu"] == pytest.approx(0.5)


def test_taking_a_step_never_waits_for_the_device(tmp_path, monkeypatch):
    metrics, state = opened(tmp_path), TrainState()

    def waits(*args, **kwargs):
        raise AssertionError("a step waited for the device")

    steps = [step_metrics(float(i), top1=[0.5, 0.5]) for i in range(20)]
    with monkeypatch.context() as patched:
        for name in WAITS:
            patched.setattr(torch.Tensor, name, waits)
        patched.setattr(dist, "all_reduce", waits)
        with pytest.raises(AssertionError):
            float(steps[0].loss)  # the patch works
        for step in steps:
            take(metrics, state, step)
    assert metrics.log(state).losses == [float(i) for i in range(20)]


def test_a_log_line_is_a_gather_an_all_reduce_and_one_look_at_the_device(tmp_path, monkeypatch):
    metrics, state = opened(tmp_path), TrainState()
    for _ in range(7):
        take(metrics, state, step_metrics(top1=[0.5, 0.5]))
    calls = []
    all_reduce, tolist = dist.all_reduce, torch.Tensor.tolist
    with monkeypatch.context() as patched:
        for name in [name for name in dir(dist) if name.startswith(("all_", "gather", "broad"))]:
            patched.setattr(dist, name, lambda *args, name=name, **kwargs: calls.append(name))
        for name in WAITS:
            patched.setattr(torch.Tensor, name, lambda *args, name=name: calls.append(name))
        patched.setattr(dist, "all_reduce", lambda t: (calls.append("reduce"), all_reduce(t)))
        patched.setattr(torch.Tensor, "tolist", lambda t: (calls.append("look"), tolist(t))[1])
        metrics.log(state)
    assert calls == ["all_gather_into_tensor", "reduce", "look"]


def test_nothing_of_an_interval_is_held_after_its_line(tmp_path):
    metrics, state = opened(tmp_path), TrainState()
    for _ in range(3):
        take(metrics, state)
    metrics.log(state)
    assert metrics._buffer.steps == []
    take(metrics, state)
    metrics.start(state)  # a roll-back: the step before it belongs to no line
    assert metrics._buffer.steps == []
    assert metrics.log(state).losses == []
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_key_checksum_depends_on_the_step_of_a_sample_and_not_on_their_order(tmp_path):
    checksums = []
    for number, turns in enumerate([("ab", "cd"), ("ba", "cd"), ("cd", "ab"), ("ac", "bd")]):
        metrics, state = opened(tmp_path / str(number)), TrainState()
        for keys in turns:
            take(metrics, state, keys=list(keys))
        metrics.log(state)
        checksums.append(lines(tmp_path / str(number) / "metrics.jsonl")[0]["data/key_checksum"])
    assert checksums[0] == checksums[1]
    assert len(set(checksums)) == 3


def test_a_resumed_run_drops_the_lines_of_steps_that_come_again(tmp_path):
    metrics, state = opened(tmp_path), TrainState()
    for _ in range(4):
        take(metrics, state)
        metrics.log(state)
    metrics.log_eval(TrainState(4, 32), {"set": {"top1": 0.5}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # killed while it wrote
    resumed = opened(tmp_path, TrainState(2, 16))
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    state = TrainState(2, 16)
    take(resumed, state)
    resumed.log(state)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def skip_steps(metrics: MetricsProcessor, state: TrainState, until: int, log_at: set[int]) -> None:
    """Steps 3, 6 and 7 have no finite gradient."""
    while state.step < until:
        skipped = state.step + 1 in (3, 6, 7)
        take(metrics, state, step_metrics(math.nan if skipped else 1.0, skipped=skipped))
        if state.step in log_at:
            metrics.log(state)


def test_the_total_of_skipped_steps_and_their_keys_survive_a_resume(tmp_path):
    """The checkpoint of step 6 lies between two lines: what it holds of skipped steps was told by
    the line of step 8, which is dropped."""
    metrics, state = opened(tmp_path), TrainState()
    skip_steps(metrics, state, 8, {4, 8})
    record = tmp_path / "skipped" / "rank_00000.jsonl"
    expected_record = lines(record)
    assert [(line["step"], line["samples_seen"], line["rank"]) for line in expected_record] == [
        (3, 16, 0),
        (6, 40, 0),
        (7, 48, 0),
    ]
    assert expected_record[0]["keys"] == [str(i) for i in range(16, 24)]
    expected = [line["train/skipped_steps"] for line in lines(tmp_path / "metrics.jsonl")]
    assert expected == [1, 3]

    state = TrainState(6, 48)
    resumed = opened(tmp_path, state)
    skip_steps(resumed, state, 8, {8})
    assert lines(record) == expected_record
    total = [line["train/skipped_steps"] for line in lines(tmp_path / "metrics.jsonl")]
    assert total == expected


def test_a_roll_back_keeps_the_record_of_what_led_to_it(tmp_path):
    metrics, state = opened(tmp_path), TrainState()
    skip_steps(metrics, state, 8, {4, 8})
    # back to the checkpoint of step 4; the samples of steps 5 to 8 are passed over
    state = TrainState(4, 64, rollbacks=1)
    metrics.start(state)
    take(metrics, state)
    metrics.log(state)
    told = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in told] == [4, 5]
    assert (told[1]["train/skipped_steps"], told[1]["train/rollbacks"]) == (3, 1)
    assert [line["step"] for line in lines(tmp_path / "skipped/rank_00000.jsonl")] == [3, 6, 7]
    metrics.close()
    resumed = opened(tmp_path, TrainState(5, 72, rollbacks=1))
    state = TrainState(5, 72, rollbacks=1)
    take(resumed, state)
    resumed.log(state)
    assert lines(tmp_path / "metrics.jsonl")[-1]["train/skipped_steps"] == 3


def test_skipped_steps_are_not_in_the_mean_and_norms_that_are_not_known_are_left_out(tmp_path):
    metrics, state = opened(tmp_path), TrainState()
    take(metrics, state, step_metrics(4.0))
    nan = math.nan
    take(metrics, state, step_metrics(nan, skipped=True, grad_norms=[nan, nan, math.inf]))
    interval = metrics.log(state)
    assert interval.skipped == [False, True] and math.isnan(interval.losses[1])
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["train/loss_mean"] == 4.0 and math.isnan(line["train/loss"])
    assert line["train/grad_norm"] == math.inf
    assert "train/grad_norm_image" not in line and "train/grad_norm_text" not in line


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RecordError, match=r"metrics.jsonl, line 2 is no line of a run"):
        opened(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3  # left as it was


def test_a_record_that_is_no_text_is_named_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "x": "\xff"}\n')
    with pytest.raises(RecordError, match=r"line 2 is no line of a run \(not UTF-8\): remove it"):
        opened(tmp_path)


def test_the_metrics_of_starts_without_a_checkpoint_stay_beside_those_of_the_run(tmp_path, capsys):
    for start in (1, 2):
        metrics, state = opened(tmp_path), TrainState()
        take(metrics, state, step_metrics(float(start)))
        metrics.log(state)
        metrics.close()
    told = capsys.readouterr().err
    assert f"begins from step 0: {tmp_path / 'metrics.1.jsonl'} has the metrics of the " in told
    opened(tmp_path)
    losses = [lines(tmp_path / f"metrics.{n}.jsonl")[0]["train/loss"] for n in (1, 2)]
    assert losses == [1.0, 2.0] and lines(tmp_path / "metrics.jsonl") == []


def test_a_record_that_is_gone_is_told_and_gone_on_without(tmp_path, capsys):
    state = TrainState(5, 40)
    metrics = opened(tmp_path, state)
    assert "metrics.jsonl: the lines up to step 5 are missing" in capsys.readouterr().err
    take(metrics, state, step_metrics(1.0))
    metrics.log(state)
    opened(tmp_path, state)
    assert "missing" not in capsys.readouterr().err


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match="metrics.jsonl"):
        MetricsProcessor(job(tmp_path), world())


def test_evaluations_are_numbers_at_the_state_s_step(tmp_path):
    metrics = opened(tmp_path)
    results = {"toys": {"kind": "retrieval", "r1": 0.5, "examples": [{"caption": "a"}]}}
    metrics.log_eval(TrainState(7, 56), results)
    metrics.log_eval(TrainState(8, 64), {})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 7, "eval/toys/r1": 0.5, "train/samples_seen": 56}
    ]


def test_the_environment_is_written(tmp_path):
    opened(tmp_path)
    told = json.loads((tmp_path / "env.json").read_text())
    assert told["world_size"] == 1 and told["packages"]["torch"] == torch.__version__
    assert len(told["git"].removesuffix("-dirty")) == 40 or told["git"] == "unknown"
