"""python -m data_tools.audit: check a data set against its manifest.

python -m data_tools.audit data/mine/manifest.json
python -m data_tools.audit somebodys/webdataset/ --leave-out-bad
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.dataset.audit import Audited, Opened, audit, open_data_set
from data_tools.dataset.foreign import Indexed
from data_tools.dataset.manifest import Manifest, ManifestError
from data_tools.ground import exit_codes
from data_tools.ground.command_line import run
from data_tools.ground.printable import printable
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
    """For tars that were not packed here: make a manifest of the samples that are whole, also where
    there is one that holds bad ones, and name the others. Every image is decoded for it, unless
    decode=0."""


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
    opened = _open(settings)
    manifest = opened.manifest
    if opened.indexed is None and manifest is not None:
        audited = _audited(manifest, opened.folder, settings)
        if _is_remade(manifest, audited, settings):
            _show("note", [f"{manifest.root / 'manifest.json'} has bad samples: made anew"])
            opened = _open(settings, anew=True)
        else:
            _show("note", [*audited.notes, *_left_out_before(manifest)])
            _show("error", audited.problems)
            if audited.problems:
                return exit_codes.FAILED
    if opened.indexed is not None:
        _tell_indexed(opened.indexed, settings.leave_out_bad)
        manifest = opened.manifest
    if manifest is None:
        return exit_codes.FAILED
    print(
        f"{printable(str(settings.data))}: {manifest.num_samples:,} samples in "
        f"{len(manifest.shards):,} shards, {manifest.num_bytes:,} bytes: checksums, counts and "
        f"offsets hold"
    )
    return exit_codes.DONE


def _open(settings: AuditSettings, anew: bool = False) -> Opened:
    return open_data_set(
        settings.data,
        settings.output,
        settings.processes,
        leave_out_bad=settings.leave_out_bad,
        num_decoded=settings.decode,
        anew=anew,
    )


def _audited(manifest: Manifest, folder: Path | None, settings: AuditSettings) -> Audited:
    num_decoded = settings.decode
    if settings.leave_out_bad and manifest.is_foreign and num_decoded:
        num_decoded = manifest.num_samples  # what is not looked at is not left out
    return audit(manifest, num_decoded, settings.processes, folder=folder)


def _is_remade(manifest: Manifest, audited: Audited, settings: AuditSettings) -> bool:
    """Whether the manifest of somebody's tars is made again, without the bad samples: that was
    asked for, and nothing else is wrong with it (the last problem says what to do)."""
    beside = not any(os.path.isabs(shard.path) for shard in manifest.shards)
    only_samples = 0 < audited.num_bad_samples == len(audited.problems) - 1
    return settings.leave_out_bad and manifest.is_foreign and beside and only_samples


def _tell_indexed(indexed: Indexed, leave_out_bad: bool) -> None:
    made = indexed.manifest is not None
    _show("note", indexed.notes)
    _show("left out" if made else "error", indexed.faults)
    _show("error", indexed.problems)
    if made and indexed.faults:
        _show("left out", [f"in all {_counted(indexed.reasons.most_common())}"])
    if not made:
        can_help = indexed.num_usable and not leave_out_bad
        advice = "; --leave-out-bad makes one without these" if can_help else ""
        print(f"error: no manifest is made{advice}", file=sys.stderr)


def _left_out_before(manifest: Manifest) -> list[str]:
    if not manifest.left_out.samples:
        return []
    return [f"left out when the manifest was made: {_counted(manifest.left_out.samples)}"]


def _counted(reasons: Iterable[tuple[str, int]]) -> str:
    """ "3: 2 x has no image, 1 x the caption is empty"."""
    reasons = list(reasons)
    total = sum(count for _, count in reasons)
    shown = ", ".join(f"{count:,} x {printable(reason)}" for reason, count in reasons)
    return f"{total:,}: {shown}"


def _show(word: str, problems: list[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"{word}: {printable(problem)}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"{word}: and {len(problems) - SHOWN_PROBLEMS:,} more", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
