"""Prints what is larger than the project wants: files above 400 lines, functions above 60."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def too_large(files: list[Path], lines: int = 400, function_lines: int = 60) -> list[str]:
    """One line per file of more than `lines` lines and per longer function; paths as given."""
    found = []
    for file in files:
        text = file.read_text()
        if (count := len(text.splitlines())) > lines:
            found.append(f"{file}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                if (count := node.end_lineno - node.lineno + 1) > function_lines:
                    found.append(f"{file}:{node.lineno}: {node.name}, {count} lines")
    return found


if __name__ == "__main__":
    rooms = ("data_tools", "pipeline", "slurm", "tests")
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    print(*too_large(paths), f"{len(paths)} files", sep="\n")
