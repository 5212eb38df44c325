"""Images per second through the crawl stage against bare img2dataset, and what a bad list costs.

    python -m tests.benchmarks.bench_crawl --images 4000 --repeats 3
    python -m tests.benchmarks.bench_crawl --images 20000 --repeats 3 --write

Bare img2dataset and the crawl stage (plan, guard, img2dataset, verification, tables) fetch the same
116 kB JPEGs from a server on the loopback, turn about, each in a process of its own, to webdataset
tars of 256 px, with the same processes and threads. Then the stage alone, turn about, with the
clean list and with one in which 5 % of the URLs are slow-loris, 5 % dead hosts and 2 % bombs (as
many URLs in all). Times and
CPU are of the whole process, start to end, with its children; RSS is summed over them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.tables.schema import FATES, DatasetPaths, read_table
from tests.benchmarks.crawl_web import Web, photo, running_web

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "crawl.md"
LIMIT_S = 3600
LORIS, DEAD, BOMBS = 0.05, 0.05, 0.02
MAX_DEAD_HOSTS = 200
SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_s: float
    images: int
    peak_bytes: int
    """Resident memory of the process and all its children, summed; shared pages count often."""
    fates: dict[str, int]


def clean_list(web: Web, count: int) -> list[str]:
    return [f"http://{web.host}/i/{number}.jpg" for number in range(count)]


def bad_list(web: Web, count: int) -> list[str]:
    """As long as the clean list; the crawl orders both by a hash of the URL."""
    loris, dead, bombs = (round(count * share) for share in (LORIS, DEAD, BOMBS))
    urls = [f"http://{web.host}/loris/{number}" for number in range(loris)]
    urls += [f"http://{web.dead[n % len(web.dead)]}/dead/{n}" for n in range(dead)]
    urls += [f"http://{web.host}/bomb/{number}" for number in range(bombs)]
    return urls + clean_list(web, count - len(urls))


def measure(command: list[str], log: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak resident bytes of the family. RuntimeError when it fails."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    started, cpu_before, peak = time.monotonic(), _cpu_of_children(), 0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT, env=environment
        )
        family = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(family))
            if time.monotonic() - started > LIMIT_S:
                process.kill()
                raise RuntimeError(f"not done after {LIMIT_S} s: {command}")
            time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {log.read_text()[-2000:]}")
    return time.monotonic() - started, _cpu_of_children() - cpu_before, peak


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            try:
                total += each.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def run_bare(urls: list[str], folder: Path, processes: int, threads: int) -> Run:
    listed = folder / "urls.parquet"
    pq.write_table(pa.table({"url": urls}), listed)
    arguments = {
        "url_list": str(listed),
        "input_format": "parquet",
        "output_folder": str(folder / "bare"),
        "output_format": "webdataset",
        "processes_count": processes,
        "thread_count": threads // processes,
        "number_sample_per_shard": -(-len(urls) // processes),
        "image_size": 256,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
    }
    code = f"import img2dataset; img2dataset.download(**{arguments!r})"
    seconds, cpu_s, peak = measure([sys.executable, "-c", code], folder / "bare.log")
    stats = [json.loads(file.read_text()) for file in (folder / "bare").glob("*_stats.json")]
    return Run(seconds, cpu_s, sum(each["successes"] for each in stats), peak, {})


def run_ours(urls: list[str], folder: Path, web: Web, processes: int, threads: int) -> Run:
    settings = {
        "urls": urls,
        "out_dir": str(folder / "ours"),
        "crawl": {
            "processes": processes,
            "threads": threads,
            "connections_per_host": threads,
            "requests_per_host_per_s": None,
            "retry_rounds": 0,  # as bare img2dataset, which asks once
            "allow_private": [web.host, *web.dead],
        },
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "tests.benchmarks.crawl_stage", str(folder / "settings.json")]
    seconds, cpu_s, peak = measure(command, folder / "ours.log")
    fates = read_table(DatasetPaths(folder / "ours").fates("crawl"), FATES)
    counts = Counter(fates["status"].to_pylist())
    return Run(seconds, cpu_s, counts["fetched"], peak, dict(counts.most_common()))


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def report(runs: dict[str, list[Run]], arguments: argparse.Namespace) -> str:
    rates = {name: [run.images / run.seconds for run in given] for name, given in runs.items()}
    peaks = {name: max(run.peak_bytes for run in given) / 1e6 for name, given in runs.items()}
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    times = {name: statistics.median(run.seconds for run in given) for name, given in runs.items()}
    fates = ", ".join(f"{count} {status}" for status, count in runs["bad list"][0].fates.items())
    lines = [
        "# The crawl stage against bare img2dataset",
        "",
        f"`python -m tests.benchmarks.bench_crawl --images {arguments.images} --repeats "
        f"{arguments.repeats} --processes {arguments.processes} --threads {arguments.threads}`",
        "",
        _machine(),
        "",
        "| run | images/s: median (lowest to highest) | seconds | CPU-ms an image | peak RSS, MB |",
        "|---|---|---|---|---|",
    ]
    for name, rate in rates.items():
        cpu_ms = statistics.median(1000 * run.cpu_s / run.images for run in runs[name])
        shown = f"{spread(rate)} | {times[name]:.1f} | {cpu_ms:.2f} | {peaks[name]:.0f}"
        lines.append(f"| {name} | {shown} |")
    lines += [
        "",
        f"- the stage / bare img2dataset, images/s: {middle['stage'] / middle['bare']:.2f} "
        "(goal: at least 0.9)",
        f"- bad list / clean list, time: {times['bad list'] / times['clean list']:.2f} "
        "(goal: at most 1.3)",
        f"- fates of the bad list: {fates}",
        "",
    ]
    return "\n".join(lines)


def _machine() -> str:
    packages = ("img2dataset", "aiohttp", "opencv-python-headless")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} x {_cpu()}, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"{versions}; server, guard and img2dataset share the cores; JPEGs of 800 x 600, "
        f"{len(photo(0)) / 1000:.0f} kB."
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=128)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    count, size = arguments.images, (arguments.processes, arguments.threads)
    runs: dict[str, list[Run]] = {"bare": [], "stage": [], "clean list": [], "bad list": []}
    num_dead = max(1, min(MAX_DEAD_HOSTS, round(count * DEAD)))
    with tempfile.TemporaryDirectory() as temporary, running_web(num_dead) as web:
        folder = Path(temporary) / "run"
        for _ in range(arguments.repeats):
            runs["bare"].append(run_bare(clean_list(web, count), fresh(folder), *size))
            runs["stage"].append(run_ours(clean_list(web, count), fresh(folder), web, *size))
            _tell(runs)
        for _ in range(arguments.repeats):
            runs["clean list"].append(run_ours(clean_list(web, count), fresh(folder), web, *size))
            runs["bad list"].append(run_ours(bad_list(web, count), fresh(folder), web, *size))
            _tell(runs)
    text = report(runs, arguments)
    print(text)
    if arguments.write:
        RESULTS.write_text(text)


def _tell(runs: dict[str, list[Run]]) -> None:
    last = {name: given[-1] for name, given in runs.items() if given}
    told = [f"{name} {run.seconds:.1f} s {run.images} images" for name, run in last.items()]
    print("; ".join(told), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
