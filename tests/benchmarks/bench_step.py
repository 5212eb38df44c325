"""A whole training step, from the batch in host memory to the updated weights, beside open_clip's.

    python -m tests.benchmarks.bench_step                             # on a GPU
    python -m tests.benchmarks.bench_step --models vit_l_14 --batch 192 --captions cc3m
    python -m tests.benchmarks.bench_step --models tiny --batch 8 --seconds 0.1   # on a CPU
    python -m tests.benchmarks.bench_step --out FILE                  # and writes the table there

Prints samples/s, MFU and peak memory of both ways that each has: the batch whole, and a larger one
by micro-batches (grad-cache; open_clip's --accum-freq). tests/benchmarks/README.md has the method.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Precision
from pipeline.distributed.world import World
from pipeline.metrics.peaks import peak_of
from tests.benchmarks.bench_loss import machine, spread, table
from tests.benchmarks.step_batches import CAPTIONS, FULL, make_batch, mean_length
from tests.benchmarks.step_providers import (
    OpenClip,
    Ours,
    bench_job,
    one_rank,
    open_clip_flops,
)

# Whole batches that fit both trainers' weights and the activations of either into 80 GB.
BATCH = {"vit_b_32": 1024, "vit_b_16": 512, "vit_l_14": 128}
MODELS = tuple(BATCH)
NUM_BATCHES = 2  # different ones, in turn


@dataclass
class Case:
    """One way of one trainer to do a step."""

    name: str
    peer: str
    """The case that it is compared with."""
    samples: int
    """A step."""
    flops: float
    """Of the forward of a sample."""
    run: Callable[[int], Any]
    """That many steps."""
    resident_bytes: int = 0
    """Of its trainer between steps."""
    rates: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""
    num_steps: int = 1

    def measure(self, seconds: float, counts: bool) -> None:
        """Samples/s over about `seconds`; where it does not count, warms up, and learns how many
        steps these are. What fails once is not tried again."""
        if self.failure:
            return
        try:
            if counts:
                self.rates.append(self.num_steps * self.samples / self._timed(self.num_steps))
                return
            self._timed(1)  # compiles
            self.peak_bytes = self.resident_bytes + self._extra_bytes()
            self.num_steps = max(1, round(seconds / (self._timed(2) / 2)))
        except Exception as error:  # no memory, no compiler: the table says so
            self.failure = _told(error)
            self.rates = []
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _timed(self, num_steps: int) -> float:
        _wait()
        started = time.perf_counter()
        self.run(num_steps)
        _wait()
        return time.perf_counter() - started

    def _extra_bytes(self) -> int:
        """At most, above what lies there between steps."""
        if not torch.cuda.is_available():
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._timed(1)
        return torch.cuda.max_memory_allocated() - before

    def row(self, peak_tflops: float | None, peer_rate: float) -> list[str]:
        if not self.rates:
            return [self.name, f"{self.samples:,}", self.failure or "not run", "", "", "", ""]
        rate = statistics.median(self.rates)
        mfu = 3 * self.flops * rate / (peak_tflops * 1e12) if peak_tflops else 0.0
        return [
            *(self.name, f"{self.samples:,}", spread(self.rates)),
            f"{rate / peer_rate:.2f}" if peer_rate else "",
            f"{3 * self.flops / 1e9:.4g}",
            f"{mfu:.1%}" if mfu else "",
            f"{self.peak_bytes / 2**30:.1f}" if self.peak_bytes else "",
        ]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:100]}".replace("\n", " ").replace("|", "/")


class Comparison:
    """Both trainers of one model, side by side in memory."""

    def __init__(self, model: str, options: argparse.Namespace, world: World) -> None:
        self._options, self._world = options, world
        self._whole = options.batch or BATCH.get(model, 64)
        self._job = bench_job(
            *(model, self._whole, options.precision, f"train.compile={options.compile}")
        )
        self._trainers: list[Any] = []
        self.lines: list[str] = []

    def cases(self) -> list[Case]:
        found = []
        for build in (self._ours, self._open_clip):
            before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
            try:
                cases = build()
                cases[0].run(1)
            except ImportError as error:
                self.lines.append(f"open_clip is not installed here ({error}): no comparison.\n")
                continue
            except Exception as error:  # one trainer less must not lose the other
                self.lines.append(f"{build.__name__.strip('_')} did not start: {_told(error)}\n")
                continue
            if torch.cuda.is_available():
                resident = torch.cuda.memory_allocated() - before
                for case in cases:
                    case.resident_bytes = resident
            found += cases
        # by peers: the pair that is compared runs one after the other
        return sorted(found, key=lambda case: case.peer)

    def _batches(self, count: int, captions: str) -> list[Any]:
        return [make_batch(self._job.model, count, captions, seed) for seed in range(NUM_BATCHES)]

    def _ours(self) -> list[Case]:
        ours = Ours(self._job, self._world)
        self._trainers.append(ours)
        captions, whole, parts = self._options.captions, self._whole, self._options.parts
        ways = [("ours", "open_clip", 1, captions), ("ours, all tokens", "open_clip", 1, FULL)]
        if parts > 1:
            name, peer = f"ours, {parts} micro-batches", f"open_clip, --accum-freq {parts}"
            ways += [(name, peer, parts, captions), (f"{name}, all tokens", peer, parts, FULL)]
        cases = []
        for name, peer, times, kind in ways:
            batches = self._batches(times * whole, kind)
            run = partial(ours.run, batches, whole if times > 1 else 0)
            cases.append(Case(name, peer, times * whole, ours.flops(batches), run))
        self.lines.append(self._told_of_captions())
        return cases

    def _told_of_captions(self) -> str:
        batches = self._batches(self._whole, self._options.captions)
        mean = statistics.mean(map(mean_length, batches))
        cut = statistics.mean(batch.tokens.shape[1] for batch in batches)
        context_length = self._job.model.text.context_length
        return f"Captions: {mean:.1f} tokens on average; cut to {cut:.0f} of {context_length}.\n"

    def _open_clip(self) -> list[Case]:
        compiled = self._options.compile != "none"
        peer = OpenClip(self._job, self._world.device, compiled=compiled)
        self._trainers.append(peer)
        whole, parts = self._whole, self._options.parts
        inputs = peer.inputs(self._batches(whole, self._options.captions))
        name, flops = "open_clip", open_clip_flops(self._job.model)
        cases = [Case(name, name, whole, flops, partial(peer.run, inputs, 1))]
        if torch.cuda.is_available():
            run = partial(peer.run_on_device, inputs)
            cases.append(Case(f"{name}, batch on the device", name, whole, flops, run))
        if parts > 1:
            by_parts = f"{name}, --accum-freq {parts}"
            run = partial(peer.run, inputs, parts)
            cases.append(Case(by_parts, by_parts, parts * whole, flops, run))
        return cases

    def close(self) -> None:
        for trainer in self._trainers:
            trainer.close()
        self._trainers = []


def compare(model: str, options: argparse.Namespace, world: World) -> str:
    comparison = Comparison(model, options, world)
    cases = comparison.cases()
    for number in range(options.repeats + 1):
        for case in cases:
            case.measure(options.seconds, counts=number > 0)
    peak = peak_of(world.device, Precision(options.precision))
    medians = {case.name: statistics.median(case.rates) for case in cases if case.rates}
    header = ["step", "batch", "samples/s", "of open_clip", "GFLOP a sample", "MFU", "peak GiB"]
    rows = [case.row(peak, medians.get(case.peer, 0.0)) for case in cases]
    comparison.close()
    del cases
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"## {model}\n\n" + "\n".join([*comparison.lines, table(header, rows)])


def title(options: argparse.Namespace) -> str:
    packages = []
    for package in ("deepspeed", "open_clip_torch", "triton"):
        try:
            packages.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"no {package}")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        packages.insert(0, f"{device.name}, {memory}, CUDA {torch.version.cuda}")
    mean, deviation = CAPTIONS[options.captions]
    return (
        f"# Training step\n\n{machine()}; {', '.join(packages)}. {options.precision}, compiled:"
        f" {options.compile} (open_clip: {'no' if options.compile == 'none' else 'all'});"
        f" {options.repeats} repeats of about {options.seconds:g} s, interleaved; median (minimum"
        f" to maximum). Captions: log-normal, {mean} tokens (deviation {deviation}) as in"
        f" {options.captions}, start and end besides.\n"
    )


def write(text: str, out: Path | None) -> None:
    if out:
        aside = out.with_suffix(".tmp")
        aside.write_text(text)
        os.replace(aside, out)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names in conf/model")
    parser.add_argument("--batch", type=int, default=0, help="pairs of a whole step; 0: by model")
    parser.add_argument("--parts", type=int, default=4, help="micro-batches of that; 1: none")
    parser.add_argument("--captions", choices=CAPTIONS, default="cc12m")
    parser.add_argument("--precision", default="bf16" if on_gpu else "fp32")
    parser.add_argument("--compile", default="towers" if on_gpu else "none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one repeat")
    parser.add_argument("--out", type=Path, help="write the table there, after each model")
    options = parser.parse_args()
    world = one_rank()
    text = title(options)
    print(text)
    for model in options.models.split(","):
        found = compare(model, options, world)
        print(found, flush=True)
        text += "\n" + found
        write(text, options.out)
    print(f"Load at the end: {os.getloadavg()[0]:.1f}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
