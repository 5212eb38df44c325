"""python -m pipeline.score model=DIR manifest=FILE [batch_size=256] [threads=4] [device=cuda:0]
[task=I/N]

model is a run directory, a native export, or a Hugging Face CLIP folder. Writes scores/ beside the
manifest and, when every shard is scored, the column `score` of the ledger; the best part of the
pairs then becomes a data set of its own:

    python -m data_tools.subset manifest=FILE out_dir=DIR keep_share=0.3

With task=I/N (I from 0) one of N processes, each on its own device, takes every N-th shard. Exit
code 0, 1 for a data set that cannot be scored, 2 for a command line that was refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_tools.dataset.manifest import ManifestError, load_manifest
from data_tools.dataset.scores import add_to_ledger, scored_shards

_REQUIRED, _OPTIONAL = ("model", "manifest"), ("batch_size", "threads", "device", "task")


class _Refused(ValueError):
    pass


def parse(arguments: list[str]) -> dict[str, str]:
    """`name=value` words with the defaults filled in; _Refused lists every problem."""
    given = {"batch_size": "256", "threads": "4", "device": "", "task": "0/1"}
    problems = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name not in _REQUIRED + _OPTIONAL or not equals or not value:
            problems.append(f"{word}: give {', '.join(f'{n}=...' for n in _REQUIRED + _OPTIONAL)}")
        given[name] = value
    problems += [f"{name} is not given: add {name}=..." for name in _REQUIRED if name not in given]
    for name in ("batch_size", "threads"):
        if not given[name].isdecimal() or int(given[name]) < 1:
            problems.append(f"{name}={given[name]}: give a number of at least 1")
    index, _, count = given["task"].partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        problems.append(f"task={given['task']}: give I/N with I from 0 to N - 1, such as 0/8")
    if problems:
        raise _Refused("\n  ".join(["the scoring cannot start:", *problems]))
    return given


def run(given: dict[str, str]) -> None:
    manifest = load_manifest(given["manifest"])
    # Imported late: torch takes seconds, and a misspelt word shall not take seconds to refuse.
    import torch

    from pipeline.score.pairs import score_shards
    from pipeline.score.scorer import load_scorer

    default = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = load_scorer(Path(given["model"]), torch.device(given["device"] or default))
    index, count = (int(part) for part in given["task"].split("/"))
    counts = score_shards(
        manifest,
        scorer,
        manifest.shards[index::count],
        batch_size=int(given["batch_size"]),
        num_threads=int(given["threads"]),
    )
    told = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
    print(f"{scorer.name}: {told}", flush=True)
    try:
        scored_shards(manifest)
    except ManifestError as error:
        if count == 1:
            raise
        print(f"the ledger waits for the other tasks: {error}", file=sys.stderr)
        return
    print(f"scores in the ledger: {add_to_ledger(manifest):,}", flush=True)


def main(arguments: list[str]) -> int:
    try:
        given = parse(arguments)
    except _Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(given)
    except (ValueError, OSError, RuntimeError) as error:
        # ScoreError and ManifestError are ValueErrors, LoaderError and CUDA's are RuntimeErrors
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
