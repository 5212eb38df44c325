"""How long training stands still for a checkpoint, beside a synchronous torch.save of the same
state.

    python -m tests.benchmarks.bench_checkpoint [--rounds 5] [--folder /on/the/disk] [--write]

The state is that of ViT-B/32 on one rank: float32 weights and both Adam moments, on the CUDA device
where there is one, else in host memory. A round takes each way once. "Small steps" are a loop of
little torch operations, as the host side of a training step is, alone and while the thread writes:
what the thread takes from the interpreter. --write puts the table into
tests/benchmarks/results/checkpoint.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.config import ModelConfig, TrainJob
from pipeline.distributed.world import World
from pipeline.engine.checkpoint import CheckpointManager
from pipeline.engine.shards import Fragment
from pipeline.model import build_clip
from pipeline.state import TrainState

RESULTS = Path(__file__).with_name("results") / "checkpoint.md"
KINDS = ("weight", "exp_avg", "exp_avg_sq")
SMALL_STEP_S = 1.0


class Engine:
    """Owns all of ViT-B/32."""

    def __init__(self, device: torch.device) -> None:
        with torch.device("meta"):
            model = build_clip(ModelConfig(), init_logit_scale=2.0, max_logit_scale=4.6)
        self.shards, self.optimizer_step = self, 1
        self._fragments = [
            Fragment(
                name,
                tuple(parameter.shape),
                0,
                {kind: torch.randn(parameter.numel(), device=device) for kind in KINDS},
            )
            for name, parameter in model.named_parameters()
        ]

    def fragments(self) -> list[Fragment]:
        return self._fragments

    def publish(self) -> None: ...

    def extra_state(self) -> dict[str, float | int | bool]:
        return {}

    def load_extra_state(self, state: dict[str, float | int | bool]) -> None: ...

    def num_bytes(self) -> int:
        return sum(4 * v.numel() for part in self._fragments for v in part.values.values())


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def torch_save(engine: Engine, path: Path) -> None:
    with path.open("wb") as file:
        torch.save({part.name: part.values for part in engine.fragments()}, file)
        file.flush()
        os.fsync(file.fileno())


def small_steps(limit_s: float, going_on: Callable[[], bool]) -> float:
    """Microseconds for each of some hundred little operations."""
    value, num_steps, began = torch.zeros(64), 0, time.perf_counter()
    while going_on() and time.perf_counter() - began < limit_s:
        for _ in range(100):
            value = value + 1.0
        num_steps += 1
    return (time.perf_counter() - began) / max(1, num_steps) * 1e6


def measure(rounds: int, folder: Path, device: torch.device) -> dict[str, list[float]]:
    engine = Engine(device)
    world = World(0, 0, 1, device, timedelta(minutes=10))
    found: dict[str, list[float]] = {}
    config = TrainJob(run_dir=str(folder / "run"))
    config.checkpoint.kept = 1
    checkpoints = CheckpointManager(config, world, "data")
    for round_number in range(rounds + 1):  # the first makes the snapshot's memory
        state = TrainState(step=round_number)
        row: dict[str, float] = {}
        row["small steps alone, us"] = small_steps(SMALL_STEP_S, lambda: True)
        row["save() returns, s"] = seconds(partial(checkpoints.save, engine, state), device)
        began = time.perf_counter()
        row["small steps while it is written, us"] = small_steps(
            600.0, lambda: checkpoints._writer.busy
        )
        checkpoints._writer.wait()
        row["written and renamed after, s"] = time.perf_counter() - began
        row["load_latest, s"] = seconds(lambda: checkpoints.load_latest(engine), device)
        path = folder / "state.pt"
        row["torch.save and fsync, s"] = seconds(partial(torch_save, engine, path), device)
        row["torch.load, s"] = seconds(partial(torch.load, path, weights_only=True), device)
        path.unlink()
        print({name: f"{value:.3g}" for name, value in row.items()}, flush=True)
        if round_number == 0:
            found["the first save() returns, s"] = [row["save() returns, s"]]
        else:
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    print(f"{engine.num_bytes() / 1e6:,.0f} MB", flush=True)
    return found


def table(found: dict[str, list[float]]) -> str:
    lines = ["| what | median | least | most |", "|---|---|---|---|"]
    for name, values in found.items():
        figures = (statistics.median(values), min(values), max(values))
        lines.append(f"| {name} | " + " | ".join(f"{value:.3g}" for value in figures) + " |")
    ours, theirs = found["save() returns, s"], found["torch.save and fsync, s"]
    ratio = statistics.median(theirs) / statistics.median(ours)
    return "\n".join(lines) + f"\n\nTraining stands still for 1/{ratio:.0f} of a torch.save.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument(
        "--write", action="store_true", help="put the table into results/checkpoint.md"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        text = table(measure(arguments.rounds, Path(folder), device))
        dist.destroy_process_group()
    print(text)
    if arguments.write:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        title = (
            f"# Checkpoints\n\n`python -m tests.benchmarks.bench_checkpoint --rounds "
            f"{arguments.rounds}` on {name}, {platform.machine()}, {os.cpu_count()} CPUs, torch "
            f"{torch.__version__}, load {load:.1f} at the beginning and {os.getloadavg()[0]:.1f} "
            f"at the end. ViT-B/32 on one rank: weights and two moments in float32.\n\n"
        )
        RESULTS.write_text(title + text)


if __name__ == "__main__":
    main()
