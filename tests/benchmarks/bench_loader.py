"""The training loader beside open_clip's, mosaicml-streaming and spdl, and where its time goes.

    python -m tests.benchmarks.bench_loader --write
    python -m tests.benchmarks.bench_loader --peer-python /tmp/peers/bin/python --write
    python -m tests.benchmarks.bench_loader --workers 1 --num-samples 500 --rounds 2

Each loader is a process of its own; a round asks every one in turn for --samples-per-round samples
a worker, when all have filled their buffers and are still. Who begins changes from round to round.
Peers other than open_clip's restated pipeline run under --peer-python, an environment with
open_clip_torch==3.3.0, torchvision, mosaicml-streaming and spdl beside this project's packages;
what does not start there is named in the table with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from tests.benchmarks.loader_shards import (
    BATCH_SIZE,
    CROP_SCALE_MIN,
    IMAGE_SIZE,
    write_data,
    write_large,
)
from tests.benchmarks.loader_stages import (
    first_batch_s,
    stage_times,
    tokenizer_rates,
    wait_until_idle,
)

RESULTS = Path(__file__).parent / "results" / "loader.md"
OWN = ("ours", "threads", "processes", "restated")
PEERS = ("open_clip", "streaming", "spdl")
STEP_TIMEOUT_S = 120.0


@dataclass
class Provider:
    """A loader process and what it has answered."""

    name: str
    num_workers: int
    process: subprocess.Popen[str]
    log: IO[str]
    """What it prints; a pipe could fill up."""
    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    resident_mb: list[int] = field(default_factory=list)
    """Of the process and its children, at the end; memory they share is counted in each."""
    failure: str = ""

    def measure(self, num_samples: int, counts: bool) -> None:
        if self.failure:
            return
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(STEP_TIMEOUT_S, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(f"{num_samples}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.failure = self._reason()
        elif counts:
            told = json.loads(line)
            self.rates.append(told["samples"] / told["seconds"])
            self.cpu_rates.append(told["samples"] / max(told["cpu_s"], 1e-3))
            self.resident_mb = told["resident_mb"]

    def close(self) -> None:
        """By the end of its input first: killed, a peer would leave its shared memory behind."""
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()

    def _reason(self) -> str:
        self.process.kill()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        told = [line for line in lines if "Error" in line] or lines or ["no message"]
        return told[-1][:160]


def start(name: str, python: str, manifest: Path, num_workers: int) -> Provider:
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [python, "-m", "tests.benchmarks.loader_providers", name, str(manifest), str(num_workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Provider(name, num_workers, process, log)


def compare(manifest: Path, options: argparse.Namespace) -> list[Provider]:
    """Rounds over all loaders at each number of workers; the first round is not counted."""
    done = []
    for num_workers in options.workers:
        names = [(name, sys.executable) for name in OWN]
        if options.peer_python:
            names += [(name, options.peer_python) for name in PEERS]
        providers = [start(name, python, manifest, num_workers) for name, python in names]
        try:
            for number in range(options.rounds + 1):
                for provider in providers[number:] + providers[:number]:
                    wait_until_idle()
                    provider.measure(options.samples_per_round * num_workers, counts=number > 0)
        finally:
            for provider in providers:
                provider.close()
        done += providers
    return done


def comparison_table(providers: list[Provider]) -> list[str]:
    lines = [
        "| loader | workers | samples/s, median (min to max) | per CPU-second, best | ours is |",
        "|---|---|---|---|---|",
    ]
    ours = {p.num_workers: p for p in providers if p.name == "ours"}
    for provider in providers:
        if provider.failure:
            lines.append(f"| {provider.name} | {provider.num_workers} | {provider.failure} | | |")
            continue
        own = ours[provider.num_workers]
        # Round by round: both met the same load.
        ratio = np.median(np.array(own.rates) / np.array(provider.rates))
        cpu = max(own.cpu_rates) / max(provider.cpu_rates)
        lines.append(
            f"| {provider.name} | {provider.num_workers} | {np.median(provider.rates):.0f} "
            f"({min(provider.rates):.0f} to {max(provider.rates):.0f}) | "
            f"{max(provider.cpu_rates):.0f} | {ratio:.2f}x, {cpu:.2f}x per CPU-second |"
        )
    return lines


def scaling_lines(providers: list[Provider]) -> list[str]:
    lines = []
    for name in ("ours", "threads", "processes"):
        rates = {p.num_workers: np.median(p.rates) for p in providers if p.name == name and p.rates}
        if len(rates) > 1 and 1 in rates:
            told = ", ".join(f"{n}: {rates[n] / rates[1]:.2f}x" for n in sorted(rates) if n > 1)
            lines.append(f"Workers against one, {name}: {told}.")
    for provider in providers:
        if provider.name == "ours" and provider.resident_mb:
            trainer, *workers = provider.resident_mb
            each = f", {min(workers)} to {max(workers)} MB a worker" if workers else ""
            lines.append(
                f"Resident memory of ours, {provider.num_workers} workers: {trainer} MB the "
                f"trainer{each} (batches in shared memory are counted in each)."
            )
    return lines


def stage_table(times: dict[str, float], providers: list[Provider]) -> list[str]:
    limit = times["libjpeg-turbo"]
    stages = {name: time for name, time in times.items() if name != "libjpeg-turbo"}
    total = sum(stages.values())
    lines = ["| stage | us of CPU a sample | share |", "|---|---|---|"]
    lines += [f"| {name} | {t:.1f} | {100 * t / total:.0f} % |" for name, t in stages.items()]
    lines.append(f"| sum | {total:.1f} | 100 % |")
    ours = [p for p in providers if p.name == "ours" and p.num_workers == 1 and p.cpu_rates]
    lines.append("")
    lines.append(
        f"libjpeg-turbo's decode alone (OpenCV's imdecode): {limit:.1f} us, {1e6 / limit:.0f} "
        f"samples per CPU-second: the limit."
    )
    if ours:
        rate = max(ours[0].cpu_rates)
        lines.append(
            f"The loader as a whole: {1e6 / rate:.0f} us, {rate:.0f} per CPU-second, "
            f"{100 * rate * limit / 1e6:.0f} % of that limit. The rest: "
            f"{stages['resize'] + stages['planes']:.0f} us crop and resize, "
            f"{times['decode'] - limit:.0f} us checks of the header, "
            f"{1e6 / rate - total:.0f} us workers, queues and batches."
        )
    return lines


def start_lines(folder: Path, manifest: Path, options: argparse.Namespace) -> list[str]:
    passes = max(3, options.rounds)
    workers = max(options.workers)
    cold = first_batch_s(manifest, 0, passes, workers)
    up = first_batch_s(manifest, 0, passes, workers, workers_up=True)
    large = write_large(folder / "large", options.large_shards, 10_000)
    position = 100_000_000 // BATCH_SIZE * BATCH_SIZE
    deep = first_batch_s(large, position, 3, workers)
    return [
        f"First batch of a cold epoch (manifest, index and shards not in the page cache), "
        f"{workers} workers: {np.median(cold):.2f} s (max {max(cold):.2f}) with the start of the "
        f"workers, {np.median(up):.2f} s (max {max(up):.2f}) once they are up.",
        f"First batch of a resume at sample 100 million of {options.large_shards:,} shards of "
        f"10,000 samples, every shard looked at by this one rank: {np.median(deep):.2f} s "
        f"(max {max(deep):.2f}).",
    ]


def bytes_lines() -> list[str]:
    pixels = 3 * IMAGE_SIZE**2
    return [
        f"Bytes of an image that cross to the consumer and to the device: {pixels:,} (uint8), "
        f"{pixels / (4 * pixels):.2f} of float32's {4 * pixels:,}. They are copied nowhere on the "
        f"host: a batch is filled in place, in page-locked memory where CUDA is there.",
    ]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--samples-per-round", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=numbers, default=[1, 2], help="as in 1,2,16")
    parser.add_argument("--large-shards", type=int, default=40_000)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--write", action="store_true", help=f"to {RESULTS.name} in results/")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, mean_bytes = write_data(folder / "data", options.num_samples)
        providers = compare(manifest, options)
        times = stage_times(manifest, options.num_samples, options.rounds)
        rates = tokenizer_rates(10 * options.num_samples, options.rounds)
        starts = start_lines(folder, manifest, options)
    lines = [
        "# The loader",
        "",
        f"{options.num_samples} JPEGs of 256 x 256 pixels and {mean_bytes / 1000:.0f} kB, crop to "
        f"{IMAGE_SIZE} (area from {CROP_SCALE_MIN}), batch {BATCH_SIZE}, one caption in five not "
        f"plain ASCII. {platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}; load {load:.1f} at the start, {os.getloadavg()[0]:.1f} at "
        f"the end, the benchmark's own included. {options.rounds} rounds of "
        f"{options.samples_per_round} samples a worker.",
        "",
        *comparison_table(providers),
        "",
        *scaling_lines(providers),
        "",
        *stage_table(times, providers),
        "",
        *(f"Captions, {n} threads: {rate:,.0f}/s." for n, rate in rates.items()),
        "",
        *starts,
        *bytes_lines(),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
