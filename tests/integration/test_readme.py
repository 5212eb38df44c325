"""Every command of README.md runs: as it stands there, made small by what is appended to it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_tools.demo.mediawiki import Picture
from data_tools.demo.server import serve
from tests.integration.runs import ROOT
from tests.pipeline.data.eval_sets import write_classification

README = (ROOT / "README.md").read_text()
# the model of the README on two CPU ranks, for three steps
SMALL = (
    "model=tiny train.steps=3 train.global_batch_size=4 train.warmup_steps=0 train.precision=fp32 "
    "cluster.ranks_per_node=2 cluster.timeout_minutes=2 train.threads_per_rank=1 "
    "data.num_workers=1 logging.wandb_mode=disabled"
)


def commands(text: str) -> list[str]:
    """The lines of the ```bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@dataclass
class Place:
    """A folder where the README's relative names (data/mine, runs/mine, pool) lie."""

    folder: Path
    small_crawl: str

    def run(self, command: str, more: str = "") -> str:
        words = [*shlex.split(command), *shlex.split(more)]
        if words[0] == "make":
            # the virtual environment that runs this test instead of one installed for it
            make = ["make", "-f", str(ROOT / "Makefile"), f"BIN={Path(sys.executable).parent}"]
            words = [*make, "-o", "install", *words[1:]]
        elif words[0] == "python":
            words[0] = sys.executable
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


def pictures(count: int) -> list[Picture]:
    rng = np.random.default_rng(0)
    return [
        Picture(
            name=f"Thing {number}.png",
            content=cv2.imencode(
                ".png",
                cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (80, 64)),
            )[1].tobytes(),
            description=f"<p>A photo of a <b>red thing</b>, number {number}</p>",
            site="things",
            license="CC0",
            license_url="https://creativecommons.org/publicdomain/zero/1.0/",
            artist="nobody",
            served="ok",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_queries.txt").write_text("# mine\nred thing\n\nblue thing\n")
    with serve(pictures(12)) as commons:
        hosts = ",".join(f"'{host}'" for host in commons.hosts)
        small = (
            "crawl.image_size=32 crawl.processes=1 crawl.threads=4 "
            f"sources.commons.endpoint='{commons.endpoint}' "
            f"sources.commons.requests_per_second=100 crawl.allow_private=[{hosts}]"
        )
        yield Place(folder, small)


def make_pool(place: Place) -> None:
    """A pool whose pictures are those that the first command found."""
    import pyarrow.parquet as pq

    found = pq.read_table(place.folder / "data/mine/tables/candidates.parquet")
    (place.folder / "pool").mkdir()
    pq.write_table(found.select(["url", "caption"]), place.folder / "pool" / "pairs.parquet")


def shards_from_commons(place: Place, command: str) -> None:
    place.run(command, f'ARGS="{place.small_crawl}"')
    for name in ("manifest.json", "report.html", "ledger.parquet"):
        assert (place.folder / "data/mine" / name).exists()


def shards_from_pool(place: Place, command: str) -> None:
    make_pool(place)
    # ARGS can be given once: what the README gives, and what makes it small
    given = re.search(r'ARGS="(.*?)"', command)
    assert given is not None
    bare = command.replace(given.group(0), "")
    place.run(bare, f'ARGS="{given.group(1)} {place.small_crawl}"')
    assert (place.folder / "data/pooled/manifest.json").exists()


def train(place: Place, command: str) -> None:
    place.run(command, SMALL)
    assert (place.folder / "runs/mine/checkpoints/latest").exists()


def evaluate(place: Place, command: str) -> None:
    """On a set where `make demo` would have written one."""
    (folder,) = re.findall(r"\[(.*?)\]", command)
    image = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    write_classification(place.folder / folder, [image], [0], ["owl", "fox"])
    assert "top-1" in place.run(command)


def as_it_stands(place: Place, command: str) -> None:
    place.run(command)


def submit(place: Place, command: str) -> None:
    # a data set of 12 samples is refused: fewer than one batch
    large = place.folder / "data" / "large" / "manifest.json"
    large.parent.mkdir()
    content = json.loads((place.folder / "data/mine/manifest.json").read_text())
    large.write_text(json.dumps(content | {"num_samples": 10**8}))
    command = command.replace("runs/mine", "runs/submitted").replace("data/mine", "data/large")
    told = place.run(command, "--dry-run")
    assert "sbatch" in told and "--nodes=4" in told


def submit_shards(place: Place, command: str) -> None:
    told = place.run(command, "--dry-run")
    assert "--array=0-63" in told and "--dependency=afterok:JOBID_OF_crawl" in told


def up_to_the_missing_key(place: Place, command: str) -> None:
    """The workspace is saved on W&B's server; what it consists of has tests of its own."""
    words = [sys.executable, *shlex.split(command)[1:]]
    outside = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    ended = subprocess.run(
        words,
        cwd=place.folder,
        env=outside | {"PYTHONPATH": str(ROOT), "HOME": str(place.folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0 and "WANDB_API_KEY" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


def in_continuous_integration(place: Place, command: str) -> None:
    """`make test` and the tiny demo are steps of .ci/run; the demo is the tiny demo's recipe."""
    steps = (ROOT / ".ci" / "run").read_text()
    if command == "make test":
        assert "make test\n" in steps
        return
    assert command == "make demo" and "make demo-smoke\n" in steps
    dry = [
        subprocess.run(
            ["make", "-n", "-o", "install", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for name in ("demo", "demo-smoke")
    ]
    assert dry[0] == dry[1].replace("demo-smoke", "demo").replace("demo_smoke", "demo")


RUNNERS: dict[str, Callable[[Place, str], None]] = {
    "make demo": in_continuous_integration,
    "make test": in_continuous_integration,
    "make shards QUERIES=my_queries.txt OUT=data/mine": shards_from_commons,
    "make shards QUERIES=my_queries.txt OUT=data/pooled": shards_from_pool,
    "python -m pipeline.train experiment=": train,
    "python -m data_tools.plan": as_it_stands,
    "python -m slurm.submit --shards": submit_shards,
    "python -m slurm.submit experiment=": submit,
    "python -m pipeline.train run_dir=": as_it_stands,
    "python -m pipeline.metrics.workspace": up_to_the_missing_key,
    "python -m pipeline.evaluate": evaluate,
    "python -m pipeline.export": as_it_stands,
    "python -m pipeline.score": as_it_stands,
    "python -m data_tools.subset": as_it_stands,
}


def test_every_command_is_known_here() -> None:
    unknown = [
        command
        for command in commands(README)
        if not any(command.startswith(start) for start in RUNNERS)
    ]
    assert unknown == []
    assert len(commands(README)) == len(RUNNERS)


def commands_in_the_text(page: Path) -> list[str]:
    """What stands between single backticks in the sentences, and in the blocks, of a page."""
    text = page.read_text()
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", sentences)]
    starts = ("python -m ", "make ", "bash ")
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = [*commands(text), *inline, *indented]
    return [command for command in found if command.startswith(starts)]


def is_known(command: str) -> bool:
    """Whether there is such a module, target of the Makefile, or script."""
    tool, *words = command.split()
    if tool == "make":
        return f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
    if tool == "bash":
        return (ROOT / words[0]).is_file()
    if words[1].partition(".")[0] in sys.stdlib_module_names:
        return True
    found = importlib.util.find_spec(words[1])
    if found is not None and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{words[1]}.__main__")
    return found is not None and '__name__ == "__main__"' in Path(str(found.origin)).read_text()


def test_commands_of_every_page_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *ROOT.glob("conf/*.md")]
    for part in ("data_tools", "pipeline", "slurm", "tests"):
        pages += (ROOT / part).rglob("README.md")
    found = {command for page in pages for command in commands_in_the_text(page)}
    placeholders = {"python -m COMMAND --help", "python -m tests.benchmarks.bench_NAME"}
    assert len(found) >= 40
    assert [one for one in sorted(found - placeholders) if not is_known(one)] == []


def test_the_plan_needs_nothing_but_the_list(tmp_path: Path) -> None:
    """The one command of the page that asks for nothing that another has made."""
    (tmp_path / "my_queries.txt").write_text("ice hockey\npuck\n")
    (plan,) = [line for line in commands(README) if "data_tools.plan" in line]
    told = Place(tmp_path, "").run(plan)
    assert "2 queries, listed for this plan only" in told and "commons, every query" in told
    assert [path.name for path in (tmp_path / "data/mine").iterdir()] == ["plan.json"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # 3 minutes on two quiet cores
def test_commands_run_in_the_order_of_the_page(place: Place) -> None:
    for command in commands(README):
        start = next(start for start in RUNNERS if command.startswith(start))
        RUNNERS[start](place, command)


@pytest.mark.slow
def test_audit_of_the_data_set_that_the_page_made(place: Place) -> None:
    assert "python -m data_tools.audit data/mine/manifest.json" in README
    place.run("python -m data_tools.audit data/mine/manifest.json")
