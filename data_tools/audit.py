"""python -m data_tools.audit: check a data set against its manifest.

python -m data_tools.audit data/mine/manifest.json
python -m data_tools.audit somebodys/webdataset/ --leave-out-bad
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.dataset.audit import audit, open_data_set
from data_tools.dataset.manifest import ManifestError
from data_tools.ground import exit_codes
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command
from data_tools.tables.schema import DataError

SHOWN_PROBLEMS = 100


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    data: Path
    """manifest.json, or a folder that holds it, or a folder of WebDataset tars without one."""
    decode: int = 256
    """Samples that are decoded, spread evenly over the data set; 0 decodes none."""
    processes: int = 2
    """Worker processes; each checks one shard at a time."""
    output: Path | None = None
    """Folder for the manifest and the indexes of tars that have none; null puts them beside the
    tars."""
    leave_out_bad: bool = False
    """For tars without a manifest: make one of the samples that are whole, and name the others."""


def _check(given: Mapping[str, Any]) -> list[str]:
    problems = []
    if given.get("processes", 1) < 1:
        problems.append(f"processes={given['processes']}: give 1 or more")
    if given.get("decode", 0) < 0:
        problems.append(f"decode={given['decode']}: give 0 (none) or more")
    return problems


COMMAND = Command(
    name="data_tools.audit",
    purpose="Check a data set against its manifest: every checksum, count and offset, and a sample "
    "decoded. A folder of plain WebDataset tars without a manifest gets one, and an index beside "
    "each tar: then it can be trained on.",
    settings=AuditSettings,
    example="data/mine/manifest.json",
    bare_word=True,
    check=_check,
    failed_by=(ManifestError, DataError, OSError),
)


def main(arguments: list[str]) -> int:
    """Exit code 0 when all of the data set holds, 1 with a line for each thing that does not."""
    return run(COMMAND, arguments, _audit)


def _audit(settings: AuditSettings, _: list[str]) -> int:
    manifest, left_out, is_new = open_data_set(
        settings.data, settings.output, settings.processes, settings.leave_out_bad
    )
    problems = []
    if manifest is not None:
        problems = audit(manifest, settings.decode, settings.processes, checksums=not is_new)
    _show("left out" if manifest is not None else "error", left_out)
    if manifest is None:
        print(
            "error: no manifest is made; --leave-out-bad makes one without these", file=sys.stderr
        )
        return exit_codes.FAILED
    _show("error", problems)
    if problems:
        return exit_codes.FAILED
    print(
        f"{settings.data}: {manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.num_bytes:,} bytes: checksums, counts and offsets hold"
    )
    return exit_codes.DONE


def _show(word: str, problems: list[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"{word}: {problem}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"{word}: and {len(problems) - SHOWN_PROBLEMS:,} more", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
