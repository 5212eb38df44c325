"""The demo's data half: draws the corpus, writes the evaluation sets, serves the pictures as a
local Commons, and runs the real build against it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from data_tools.build import build
from data_tools.config import CONFIGURATION, ConfigError, load_job
from data_tools.dataset.manifest import ManifestError
from data_tools.demo.config import DemoConfig, parse_demo
from data_tools.demo.corpus import Corpus, build_corpus
from data_tools.demo.eval_sets import EVAL_SETS, write_eval_sets
from data_tools.demo.server import ApiFaults, LocalCommons, serve
from data_tools.ground import command_line, settings
from data_tools.ground.aside import write_text_aside
from data_tools.ground.overrides import Configuration, quoted_text
from data_tools.tables.schema import DataError

# About as often as from a busy Commons; the client waits a second and asks again.
FAULTS = ApiFaults(maxlag_every=499, ratelimited_every=797, retry_after_s=1)


def run(overrides: list[str]) -> None:
    """Build the demo's data set into `out_dir`, with its evaluation sets in `out_dir`/eval.

    Raises ConfigError and DataError.
    """
    config, job_overrides = parse_demo(overrides)
    out_dir = _out_dir(job_overrides)
    corpus = build_corpus(config)
    counts = {"styles": len(config.styles), "pictures": len(corpus.pictures)}
    counts |= write_eval_sets(corpus, out_dir / "eval")
    summary = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
    print(f"    corpus: {summary}", flush=True)
    queries = out_dir / "queries.txt"
    write_text_aside(queries, "".join(f"{label}\n" for label in corpus.labels))
    with served(corpus, config, out_dir) as commons:
        build(load_job([*_server_overrides(commons, queries), *job_overrides]))
    recipe = next(text.split("=")[1] for text in job_overrides if text.startswith("recipe="))
    print("\n".join(next_commands(recipe, out_dir)), flush=True)


def next_commands(recipe: str, out_dir: Path) -> list[str]:
    """What can be done after the demo's data half, a line each, aligned with build's output."""
    sets = ",".join(f"{out_dir}/eval/{name}" for name in EVAL_SETS)
    overrides = [
        f"experiment={recipe}",
        f"data.manifest={out_dir}/manifest.json",
        f"eval.datasets=[{sets}]",
    ]
    return [
        f"     train: python -m pipeline.train {shlex.join(overrides)}",
        "  your own: python -m data_tools.build queries.path=my_queries.txt out_dir=data/mine "
        "source=commons sources.contact=you@example.org",
    ]


def _out_dir(overrides: list[str]) -> Path:
    given = [text.split("=", 1)[1] for text in overrides if text.startswith("out_dir=")]
    if not given or not given[-1]:
        raise ConfigError("out_dir is not given: add out_dir=DIR")
    path = Path(given[-1])
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out_dir = {path}: {error.strerror}; name a folder") from error
    return path


def _server_overrides(commons: LocalCommons, queries: Path) -> list[str]:
    """Overrides that point the job to the local server; values are quoted for Hydra's grammar."""
    hosts = ",".join(f"'{host}'" for host in commons.hosts)
    return [
        "source=commons",
        f"queries.path={quoted_text(str(queries))}",
        f"sources.commons.endpoint='{commons.endpoint}'",
        "sources.contact='demo@localhost'",
        f"crawl.allow_private=[{hosts}]",
    ]


@contextmanager
def served(corpus: Corpus, config: DemoConfig, out_dir: Path) -> Iterator[LocalCommons]:
    """Serve the corpus while the block runs.

    A run into `out_dir` that had ports before gets the same ones, because its tables hold these
    addresses (DataError if one is taken). Otherwise the ports begin at `first_port`; if one of
    these is taken, free ports are used.
    """
    record = out_dir / "ports.json"
    names = ["api", *config.styles]
    preferred = {name: config.first_port + number for number, name in enumerate(names)}
    earlier = json.loads(record.read_text()) if record.exists() else {}
    with ExitStack() as stack:
        try:
            ports = earlier if set(earlier) == set(names) else preferred
            commons = stack.enter_context(serve(corpus.pictures, faults=FAULTS, ports=ports))
        except OSError as error:
            if ports is earlier:
                raise DataError(
                    f"{record}: a port of the earlier run is taken ({error}); stop what holds it, "
                    f"or delete {out_dir} to start anew on other ports"
                ) from error
            taken = f"of ports {min(ports.values())} to {max(ports.values())} some are taken"
            print(f"{taken}: using free ones, so uids differ from other runs'", file=sys.stderr)
            commons = stack.enter_context(serve(corpus.pictures, faults=FAULTS))
        hosts = {"api": urlsplit(commons.endpoint).netloc, **commons.site_hosts}
        ports = {name: int(hosts[name].split(":")[1]) for name in names}
        write_text_aside(record, json.dumps(ports))
        yield commons


COMMAND = settings.Command(
    name="data_tools.demo",
    purpose="Build a data set from nothing but npm packages: emoji in six art styles are drawn, "
    "served on 127.0.0.1 as a small Wikimedia Commons, searched, crawled and packed; a seventh "
    "style becomes the evaluation sets in out_dir/eval. recipe=demo is the whole of it, "
    "recipe=demo_smoke 60 labels in three styles.",
    settings=settings.NoSettings,
    goes_on=True,
    example="out_dir=runs/demo/data recipe=demo_smoke",
    configuration=Configuration(DemoConfig, CONFIGURATION.folder, "", "demo.", CONFIGURATION),
    refused_by=(ConfigError,),
    failed_by=(DataError, ManifestError),
)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return command_line.run(COMMAND, arguments, lambda _, overrides: run(overrides))
