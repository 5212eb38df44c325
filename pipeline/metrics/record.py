"""Files of JSON lines in the run directory; a resumed run removes the lines of steps that it takes
again."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.ground.aside import write_text_aside


class RecordError(ValueError):
    """A file of an earlier run holds something other than its lines."""


class JsonLines:
    """A file that grows by one line per `append`; when `append` returns, other processes can read
    the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Keep the lines that are `wanted`; drop the others, and a last line that a kill cut off.
        Returns the kept lines, parsed.

        Raises RecordError for a line in the middle that is no JSON object with a step.
        """
        # bytes that are no UTF-8 are let through: the line that they are in is then named
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        whole, _, cut_off = text.rpartition("\n")
        lines = whole.split("\n") if whole else []
        entries = [self._parse(number, line) for number, line in enumerate(lines, start=1)]
        kept = [entry for entry in entries if wanted(entry)]
        if cut_off or len(kept) < len(lines):
            self._file.close()
            staying = [line for line, entry in zip(lines, entries, strict=True) if wanted(entry)]
            write_text_aside(self.path, "".join(f"{line}\n" for line in staying))
            # The open file was the replaced one: lines appended to it would be lost.
            self._file = self.path.open("a", encoding="utf-8")
        return kept

    def set_aside(self) -> Path | None:
        """Begin an empty file. What there was stays as NAME.1.jsonl, or the next number; returns
        that, None where there was nothing."""
        if not self.path.stat().st_size:
            return None
        numbers = itertools.count(1)
        names = (self.path.with_suffix(f".{number}{self.path.suffix}") for number in numbers)
        aside = next(name for name in names if not name.exists())
        self._file.close()
        os.replace(self.path, aside)
        self._file = self.path.open("a", encoding="utf-8")
        return aside

    def close(self) -> None:
        self._file.close()

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            entry["step"] + 0
            line.encode()
        except (ValueError, KeyError, TypeError) as error:
            why = "not UTF-8" if isinstance(error, UnicodeError) else repr(error)
            raise RecordError(
                f"{self.path}, line {number} is no line of a run ({why}): remove it"
            ) from error
        return dict(entry)
