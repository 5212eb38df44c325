"""How long a training takes to refuse a wrong configuration, and to import what a rank needs.

    python -m tests.benchmarks.bench_start [--repeats 7] [--out FILE]

Each measurement is a new process; one round runs every row once. "As before" does what launcher and
ranks did until they imported only what they use: the launcher imports all that a rank does, a rank
DeepSpeed's compiled Muon and matplotlib as well.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RANK = "import pipeline.train, torch; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])"
BEFORE = "import torch, deepspeed, deepspeed.runtime.zero.muon.original_muon, matplotlib.figure; "
REFUSED = ["-m", "pipeline.train", "train.lrr=1"]
ROWS = {
    "refusal": REFUSED,
    "refusal, as before": [
        "-c",
        f"{RANK}; import runpy, sys; sys.argv = {REFUSED[1:]!r}; "
        "runpy.run_module('pipeline.train', run_name='__main__')",
    ],
    "imports of a rank": ["-c", RANK],
    "imports of a rank, as before": ["-c", BEFORE + RANK],
}


def measured(words: list[str]) -> tuple[float, float]:
    """(seconds by the clock, CPU-seconds) of a process."""
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run([sys.executable, *words], capture_output=True, timeout=120)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == (2 if REFUSED[-1] in " ".join(words) else 0), ended.stderr
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return wall, cpu


def table(repeats: int) -> str:
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for number in range(repeats + 1):
        for name, words in ROWS.items():
            values = measured(words)
            if number:  # the first round fills the page cache
                found[name].append(values)
    lines = [
        "# Start of a training",
        "",
        f"`python -m tests.benchmarks.bench_start --repeats {repeats}`; {os.cpu_count()} cores, "
        f"Python {sys.version.split()[0]}; load average {load:.1f} at the start. Median, minimum "
        "and maximum in brackets.",
        "",
        "| | seconds | CPU-seconds |",
        "|---|---|---|",
    ]
    for name, values in found.items():
        cells = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*values, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = table(options.repeats)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
