"""Which class names of the evaluation sets are queries: a concept that was not searched for is
learned by accident only. MetaCLIP's 500,000 queries have 703 of the 998 distinct class names of
ImageNet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.tables.schema import DataError
from data_tools.text.fold import fold

CLASS_NAMES = "classnames.txt"
MISSING_SHOWN = 50


@dataclass(frozen=True)
class Coverage:
    name: str
    num_classes: int
    """Distinct names, after folding."""
    covered: int
    """Names that are a query."""
    with_pairs: int
    """Names that are a query with a packed pair."""
    missing: list[str]
    """The first MISSING_SHOWN names that are no query, in the order of the file."""


def class_name_files(given: Sequence[str], eval_folder: Path) -> list[Path]:
    """Return the text files of class names, those in `eval_folder` first, each once. DataError for
    a path without one."""
    files = sorted(eval_folder.glob(f"*/{CLASS_NAMES}"))
    for path in map(Path, given):
        if path.is_dir():
            found = sorted([*path.glob(CLASS_NAMES), *path.glob(f"*/{CLASS_NAMES}")])
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise DataError(
                f"report.class_names: {path} is neither a file nor a folder with {CLASS_NAMES} in "
                "it or one level below"
            )
        files += found
    return list({file.resolve(): file for file in files}.values())


def inputs(given: Sequence[str], eval_folder: Path) -> list[str]:
    """Return hashes of the files: the report is made again when one changes. Missing files are left
    to the stage, which names them."""
    try:
        files = class_name_files(given, eval_folder)
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except (DataError, OSError):
        return []


def coverage(
    files: Sequence[Path], folded_queries: dict[str, int], packed: np.ndarray
) -> list[Coverage]:
    """Return a Coverage for each file. `folded_queries` is query id by folded query; `packed` is
    the number of packed pairs by query id."""
    return [_file_coverage(file, folded_queries, packed) for file in files]


def read_class_names(file: Path) -> list[str]:
    """Return the lines that hold a name. "_" stands for a space, as in many such lists. DataError
    for a file that is not UTF-8, or has no name."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error}): save it as UTF-8") from error
    names = [" ".join(line.replace("_", " ").split()) for line in lines]
    if not any(names):
        raise DataError(f"{file} has no class name: give one a line")
    return [name for name in names if name]


def _file_coverage(file: Path, folded_queries: dict[str, int], packed: np.ndarray) -> Coverage:
    names: dict[str, str] = {}
    for name in read_class_names(file):
        names.setdefault(fold(name), name)
    ids = [folded_queries[folded] for folded in names if folded in folded_queries]
    missing = [name for folded, name in names.items() if folded not in folded_queries]
    return Coverage(
        name=file.parent.name if file.name == CLASS_NAMES else file.stem,
        num_classes=len(names),
        covered=len(ids),
        with_pairs=sum(bool(packed[query_id] > 0) for query_id in ids),
        missing=missing[:MISSING_SHOWN],
    )
