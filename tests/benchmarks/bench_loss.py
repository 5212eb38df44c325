"""Time, memory and accuracy of the contrastive loss beside its peers.

    python -m tests.benchmarks.bench_loss              # what this machine has: CUDA, else the CPU
    python -m tests.benchmarks.bench_loss --shapes     # CUDA: times the candidate tile shapes
    python -m tests.benchmarks.bench_loss --out FILE   # and writes the tables there

Providers are interleaved, so that a change of clock or load meets all of them; medians and spread
are printed. tests/benchmarks/README.md has the method, results/ the tables taken so far.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.loss_providers import Provider, cpu_providers, open_clip, recompute
from tests.benchmarks.peak_memory import peak_extra_bytes
from tests.gloo import run_gloo

LOG_SCALE = 2.66  # exp is 14.3, where CLIP starts
DIMENSION = 512
ROOT = Path(__file__).parents[2]


def features(num_rows: int, dimension: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Unit image and text features with clusters, and the scale; all of them learn."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    which = torch.randint(max(1, num_rows // 4), (num_rows,), generator=generator, device=device)
    pairs = normal(max(1, num_rows // 4), dimension)[which] + normal(dimension)
    sides = [pairs + 0.7 * normal(num_rows, dimension) for _ in range(2)]
    leaves = [torch.nn.functional.normalize(side, dim=1).to(dtype) for side in sides]
    return [leaf.requires_grad_() for leaf in (*leaves, torch.tensor([LOG_SCALE], device=device))]


def step(provider: Provider, leaves: Sequence[Tensor]) -> tuple[float, float]:
    """Seconds of forward and of backward, on a CPU."""
    for leaf in leaves:
        leaf.grad = None
    started = time.perf_counter()
    loss = provider(*leaves)
    between = time.perf_counter()
    loss.backward()
    return between - started, time.perf_counter() - between


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def time_on_cpu(num_rows: int, repeats: int) -> list[list[str]]:
    providers = cpu_providers(num_rows)
    leaves = features(num_rows, DIMENSION, "cpu", torch.float32)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in providers}
    for repeat in range(repeats + 1):
        for name, provider in providers.items():
            taken = step(provider, leaves)
            if repeat:  # the first round warms up
                times[name].append(taken)
    base = statistics.median(sum(pair) for pair in times["open_clip"])
    rows = []
    for name, pairs in times.items():
        totals = [sum(pair) for pair in pairs]
        forward, backward = (statistics.median(part) for part in zip(*pairs, strict=True))
        memory = memory_on_cpu(name, num_rows)
        rows.append(
            [
                *(f"{num_rows:,}", name, f"{forward:.3g}", f"{backward:.3g}", spread(totals)),
                *(f"{statistics.median(totals) / base:.2f}", f"{memory / 2**20:.0f}"),
            ]
        )
    return rows


def memory_on_cpu(provider: str, num_rows: int) -> int:
    """Peak of one step, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_loss", "--memory", provider]
    command += ["--rows", str(num_rows)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if run.returncode:
        raise RuntimeError(f"measuring {provider} at {num_rows} rows failed:\n{run.stderr}")
    return int(run.stdout)


def print_memory(provider: str, num_rows: int) -> None:
    function = cpu_providers(num_rows)[provider]
    step(function, features(64, DIMENSION, "cpu", torch.float32))
    leaves = features(num_rows, DIMENSION, "cpu", torch.float32)
    print(peak_extra_bytes(partial(step, function, leaves)))


def _rank(rank: int, world_size: int, rows: int, repeats: int) -> dict[str, list[float]]:
    image, text, scale = features(rows, DIMENSION, "cpu", torch.float32)
    mine = slice(rank * rows // world_size, (rank + 1) * rows // world_size)
    leaves = [x.detach().clone().requires_grad_() for x in (image[mine], text[mine], scale)]
    results: dict[str, list[float]] = {}
    for name, provider in (("ours", recompute), ("open_clip", open_clip)):
        peak = peak_extra_bytes(partial(step, provider, leaves))
        results[name] = [float(peak)]
    for _ in range(repeats):
        for name, provider in (("ours", recompute), ("open_clip", open_clip)):
            torch.distributed.barrier()
            results[name].append(sum(step(provider, leaves)))
    return results


def time_on_ranks(num_rows: int, repeats: int) -> list[list[str]]:
    ranks = run_gloo(_rank, 2, num_rows, repeats, timeout_s=600)
    slowest = {
        name: [max(rank[name][i] for rank in ranks) for i in range(1, repeats + 1)]
        for name in ranks[0]
    }
    base = statistics.median(slowest["open_clip"])
    return [
        [
            *(f"{num_rows:,}", name, spread(times), f"{statistics.median(times) / base:.2f}"),
            f"{max(rank[name][0] for rank in ranks) / 2**20:.0f}",
        ]
        for name, times in slowest.items()
    ]


def cpu_report(sizes: Sequence[int], repeats: int) -> str:
    rows = []
    for size in sizes:
        rows += time_on_cpu(size, repeats if size <= 8192 else max(1, repeats // 2))
        print(f"{size} rows done", file=sys.stderr, flush=True)
    header = ["n = N", "loss", "forward s", "backward s", "both s", "of open_clip", "extra MiB"]
    threads = torch.get_num_threads()
    largest = min(8192, max(sizes))
    return "\n".join(
        [
            f"## One process, {threads} threads, d = {DIMENSION}, float32\n",
            table(header, rows),
            f"## Two gloo ranks, one thread each, d = {DIMENSION}, float32\n",
            table(
                ["N", "loss", "both s, slower rank", "of open_clip", "extra MiB a rank"],
                time_on_ranks(largest, repeats),
            ),
        ]
    )


def machine() -> str:
    name = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return (
        f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def report(arguments: argparse.Namespace) -> str:
    from tests.benchmarks import loss_accuracy

    parts = [f"# Contrastive loss\n\n{machine()}; {arguments.repeats} repeats, interleaved;"]
    parts[0] += " median (minimum to maximum)\n"
    if torch.cuda.is_available():
        from tests.benchmarks import bench_loss_gpu

        if arguments.shapes:
            return bench_loss_gpu.shapes_report()
        parts.append(bench_loss_gpu.report(arguments.sizes or bench_loss_gpu.SIZES))
    else:
        parts.append("No GPU was at hand: the Triton kernels were not timed.\n")
        parts.append(cpu_report(arguments.sizes or (1024, 4096, 8192, 16384), arguments.repeats))
    parts.append(loss_accuracy.report())
    parts.append(f"Load at the end: {os.getloadavg()[0]:.1f}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="rows, n = N")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", action="store_true", help="time tile shapes (CUDA)")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_memory(arguments.memory, arguments.rows)
        return
    text = report(arguments)
    print(text)
    if arguments.out:
        aside = arguments.out.with_suffix(".tmp")
        aside.write_text(text)
        os.replace(aside, arguments.out)


if __name__ == "__main__":
    main()
