"""What a run tells: metrics.jsonl always, W&B beside it, and a line (or a bar) on the console."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import xxhash
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import TrainJob, WandbMode, to_yaml
from pipeline.distributed import World
from pipeline.state import StepMetrics, TrainState

WANDB_ID = "wandb_id"
# Waiting below this share of a step is noise of single slow batches.
INPUT_BOUND_SHARE = 0.1


class MetricsProcessor:
    """Owns the clock and the sinks. `log` is collective: it reduces over ranks once; rank 0
    writes."""

    def __init__(self, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        self._steps = config.train.steps
        self._run_dir = Path(config.run_dir)
        self._wait_s = 0.0
        self._replaced = 0
        self._flops = 0.0
        self._key_checksum = 0
        self._lines_input_bound = 0
        self._bar: Progress | None = None
        self._wandb: Any = None
        self._mark = time.monotonic()
        self._marked_step = 0
        if world.is_main:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            (self._run_dir / "env.json").write_text(json.dumps(environment(world), indent=1) + "\n")
            self._file = (self._run_dir / "metrics.jsonl").open("a")
            self._wandb = _start_wandb(config, self._run_dir)

    def start(self, state: TrainState) -> None:
        """The clock starts here, after everything slow of the start-up; lines of steps that will be
        done again are dropped."""
        self._mark, self._marked_step = time.monotonic(), state.step
        if not self._world.is_main:
            return
        self._forget_after(state.step)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=self._steps, completed=state.step, shown=""
            )

    def took(
        self,
        keys: list[str],
        *,
        step: int,
        waited_s: float,
        num_replaced: int,
        flops_per_sample: float,
    ) -> None:
        """Note this rank's part of a batch: its samples' keys, how long the loop waited for it, how
        many samples stand in for undecodable ones, the forward FLOPs of a pair at its text length.

        The checksum adds a hash of (step, key) over samples, so it is the same for any number of
        ranks: two runs that log equal checksums took the same samples at the same steps.
        """
        self._wait_s += waited_s
        self._replaced += num_replaced
        self._flops += 3 * flops_per_sample * len(keys)  # the backward costs two forwards
        self._key_checksum += sum(xxhash.xxh32_intdigest(key.encode(), seed=step) for key in keys)

    def log(self, state: TrainState, step: StepMetrics) -> None:
        """Reduce what the ranks know (one all-reduce), derive rates since the last call, write to
        every sink.

        train/loss is the loss of the global batch at this step, not a mean since the last line.
        """
        num_steps, device = state.step - self._marked_step, step.loss.device
        wait_s, checksum = self._wait_s / max(1, num_steps), self._key_checksum % 2**24
        mine = [wait_s, self._replaced, checksum, self._flops]
        # float64, in which sums of checksums are exact
        shared = torch.tensor([0.0, *mine], dtype=torch.float64).to(device, non_blocking=True)
        shared[0] = step.loss.reshape(())
        dist.all_reduce(shared)  # also waits for the device: the clock below counts finished work
        now = time.monotonic()
        elapsed = max(now - self._mark, 1e-9)
        samples_per_second = num_steps * self._config.train.global_batch_size / elapsed
        loss_sum, wait_sum, replaced, checksum_sum, flops = shared.tolist()
        line: dict[str, float] = {
            "train/loss": loss_sum / self._world.world_size,
            "train/logit_scale": float(step.logit_scale.exp()),
            "train/grad_norm": step.grad_norm,
            "train/lr": step.lr,
            "train/skipped_steps": step.skipped_steps,
            "train/samples_seen": state.samples_seen,
            "perf/samples_per_second": samples_per_second,
            "perf/samples_per_second_per_rank": samples_per_second / self._world.world_size,
            "perf/step_s": elapsed / max(1, num_steps),
            "perf/tflops_per_rank": flops / elapsed / self._world.world_size / 1e12,
            "perf/memory_gib": _memory_gib(device),
            "data/wait_s": wait_sum / self._world.world_size,
            "data/wait_share": wait_sum / self._world.world_size / (elapsed / max(1, num_steps)),
            "data/replaced_samples": replaced,
            "data/key_checksum": checksum_sum % 2**24,
        }
        self._mark, self._marked_step = now, state.step
        self._wait_s, self._replaced, self._key_checksum, self._flops = 0.0, 0, 0, 0.0
        if self._world.is_main:
            self._write(state.step, line)
            self._show(state.step, line)
            self._tell_if_input_bound(line["data/wait_share"])

    def log_eval(self, state: TrainState, results: dict[str, dict[str, Any]]) -> None:
        """Scores of an evaluation, as eval/<data set>/<metric>. Not collective."""
        if self._world.is_main and results:
            flat = {
                f"eval/{name}/{metric}": value
                for name, scores in results.items()
                for metric, value in scores.items()
                if isinstance(value, (int, float))
            }
            self._write(state.step, flat)

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Around an evaluation or a checkpoint: their time is not the steps' time."""
        stopped = time.monotonic()
        yield
        self._mark += time.monotonic() - stopped

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._world.is_main:
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()

    def _write(self, step: int, line: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(line, step=step)

    def _show(self, step: int, line: dict[str, float]) -> None:
        shown = (
            f"loss {line['train/loss']:.3f}  scale {line['train/logit_scale']:.1f}  "
            f"{line['perf/samples_per_second']:.0f} samples/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            left = (self._steps - step) * line["perf/step_s"]
            print(f"step {step}/{self._steps}  {shown}  {left / 60:.1f} min left", flush=True)

    def _tell_if_input_bound(self, share: float) -> None:
        """At the second line in a row: the first one of a run holds its cold start."""
        self._lines_input_bound = self._lines_input_bound + 1 if share >= INPUT_BOUND_SHARE else 0
        if self._lines_input_bound == 2:
            config = self._config
            cpus = (os.cpu_count() or 1) // max(1, config.cluster.ranks_per_node)
            print(input_bound_verdict(share, config.data.num_workers, cpus), file=sys.stderr)

    def _forget_after(self, step: int) -> None:
        """A killed run has logged steps that its checkpoint does not hold; they come again, and
        once is enough."""
        path = self._run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if len(kept) != len(lines):
            self._file.close()
            aside = path.with_name(".metrics.jsonl.tmp")
            aside.write_text("".join(kept))
            os.replace(aside, path)
            self._file = path.open("a")


def input_bound_verdict(share: float, num_workers: int, cpus_per_rank: int) -> str:
    """What to do about steps that wait for data for `share` of their time."""
    if num_workers < cpus_per_rank:
        fix = f"raise data.num_workers from {num_workers}"
    else:
        fix = (
            f"data.num_workers = {num_workers} already, one for each of the rank's CPUs: give it "
            f"more CPUs, or store the images smaller"
        )
    return f"input-bound: {100 * share:.0f} % of step time; {fix}"


def _start_wandb(config: TrainJob, run_dir: Path) -> Any:
    """Online when a key is at hand, else an offline record for `wandb sync`; the same run id after
    a resume."""
    mode = config.logging.wandb_mode
    if mode is WandbMode.disabled:
        return None
    import wandb

    if mode is WandbMode.auto:
        mode = WandbMode.online if wandb.login(prompt=False) else WandbMode.offline
    id_path = run_dir / WANDB_ID
    if not id_path.exists():
        id_path.write_text(uuid.uuid4().hex[:8])
    return wandb.init(
        project=config.logging.wandb_project,
        entity=config.logging.wandb_entity or None,
        name=run_dir.name,
        id=id_path.read_text().strip(),
        resume="allow",
        mode=mode.value,  # type: ignore[arg-type]
        dir=str(run_dir),
        config={"config": to_yaml(config)},
        settings=wandb.Settings(silent=True, console="off"),
    )


def environment(world: World) -> dict[str, object]:
    """What a reader of the run needs to repeat it: versions, git revision, hardware. No host names,
    no variables."""
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        git = ""
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor()
    return {
        "git": git or "unknown",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
        "device": device or platform.machine(),
        "cpus": os.cpu_count(),
        "world_size": world.world_size,
    }


def _memory_gib(device: torch.device) -> float:
    """Peak of the device on CUDA, resident set of this rank on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
