"""The files of a run's scores. Scores of the same step are merged by the name of the set.

eval/step_00000200.json     {"step", "results": {set: scores}}
eval/examples.json          {"step", "sets": {set: {"kind", "step", "examples"}}}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_tools.ground.aside import remove_leftovers, write_text_aside
from data_tools.ground.lock import HeldError, LockError, take

Scores = dict[str, dict[str, Any]]
"""Results by set name."""

WAIT_S = 60.0
"""How long another process may take to merge its scores, which takes milliseconds."""

SIZES = {"classification": "num_classes", "retrieval": "num_captions"}
"""What the scores of each kind of set tell besides num_samples."""

NOT_SCORES = (ValueError, KeyError, TypeError, AttributeError)
"""What a file with another content raises when it is parsed."""
UNREADABLE = (OSError, *NOT_SCORES)


def write_results(run_dir: Path, step: int, results: Scores) -> Path:
    """Add results to eval/step_N.json and their examples to eval/examples.json; return the path of
    the first. Sets of other names keep their scores, and examples of a later step stay.

    Standard JSON: a NaN raises ValueError. A file of an earlier evaluation that cannot be read is
    renamed to `*.damaged`, and a line on stderr says so.
    """
    scores = {
        name: {key: value for key, value in result.items() if key != "examples"}
        for name, result in results.items()
    }
    examples = {
        name: {"kind": result["kind"], "step": step, "examples": result.get("examples", [])}
        for name, result in results.items()
    }
    path, examples_path = _scores_path(run_dir, step), _examples_path(run_dir)
    with _alone(path.parent):
        merged = (_read_or_set_aside(path, _scores_of) or {}) | scores
        shown = _read_or_set_aside(examples_path, _examples_of) or {}
        shown |= {
            name: entry
            for name, entry in examples.items()
            if name not in shown or shown[name]["step"] <= step
        }
        _write_examples(examples_path, shown)
        _write(path, {"step": step, "results": merged})
    return path


def read_evaluations(run_dir: Path) -> list[tuple[int, Scores]]:
    """(step, results by set name) of all evaluations of a run, oldest first. A file that cannot be
    read is left out, and a line on stderr says so."""
    found = []
    for path in sorted((run_dir / "eval").glob("step_*.json")):
        try:
            found.append((int(path.stem.removeprefix("step_")), _scores_of(_load(path))))
        except UNREADABLE as error:
            _tell(
                f"{path} cannot be read ({error}) and is left out of the report: delete it, or "
                f"evaluate that step again"
            )
    return sorted(found, key=lambda evaluation: evaluation[0])


def read_examples(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Kind, step and examples by set name; empty where there is no file. One that cannot be read is
    left out, and a line on stderr says so."""
    path = _examples_path(run_dir)
    if not path.exists():
        return {}
    try:
        return _examples_of(_load(path))
    except UNREADABLE as error:
        _tell(f"{path} cannot be read ({error}) and is left out of the report: delete it")
        return {}


def scored_sets(run_dir: Path, step: int) -> set[str]:
    """Names of the sets that have scores of this step; a file that cannot be read has none."""
    try:
        return set(_scores_of(_load(_scores_path(run_dir, step))))
    except UNREADABLE:
        return set()


def set_aside_after(run_dir: Path, step: int) -> list[int]:
    """Rename the scores of later steps to `*.outdated` and drop their examples; return the steps. A
    run that went back to `step` takes those steps again, and its weights may be others."""
    folder, outdated = run_dir / "eval", []
    if not folder.is_dir():
        return []
    with _alone(folder):
        for path in sorted(folder.glob("step_*.json")):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                os.replace(path, path.with_name(f"{path.name}.outdated"))
                outdated.append(int(number))
        shown = read_examples(run_dir)
        kept = {name: entry for name, entry in shown.items() if entry["step"] <= step}
        if len(kept) < len(shown):
            _write_examples(_examples_path(run_dir), kept)
    return outdated


def _scores_path(run_dir: Path, step: int) -> Path:
    return run_dir / "eval" / f"step_{step:08d}.json"


def _examples_path(run_dir: Path) -> Path:
    return run_dir / "eval" / "examples.json"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: a training and an evaluation beside it may score the same step. A file
    system without locks goes without. TimeoutError names who does not let go."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(take(folder / ".lock", wait_s=WAIT_S))
        except HeldError as error:
            raise TimeoutError(f"for {WAIT_S:.0f} s they were being written by {error}") from None
        except LockError:
            pass
        yield


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _scores_of(content: Any) -> Scores:
    """The results of eval/step_N.json; KeyError, TypeError or ValueError where it is no such
    file."""
    results = content["results"]
    for result in results.values():
        result["num_samples"] + result[SIZES[result["kind"]]]
    return dict(results)


def _examples_of(content: Any) -> dict[str, dict[str, Any]]:
    step = content["step"]
    # files of older versions have one step for all sets
    return {name: {"step": step} | entry for name, entry in content["sets"].items()}


def _read_or_set_aside(path: Path, parse: Any) -> Any:
    """The content of an earlier file; None where there is none, or where it was set aside."""
    remove_leftovers(path)
    if not path.exists():
        return None
    try:
        return parse(_load(path))
    except NOT_SCORES as error:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        _tell(f"{path} cannot be read ({error}): it is {aside} now, and its scores are not merged")
        return None


def _write_examples(path: Path, shown: dict[str, dict[str, Any]]) -> None:
    newest = max((entry["step"] for entry in shown.values()), default=0)
    _write(path, {"step": newest, "sets": shown})


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_aside(path, text + "\n")


def _tell(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
