"""What import-linter cannot say: who may know of ranks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# starts the workers in its own environment with a longer search path: passed on, not read
PASSES_ON = {("pipeline/data/processes.py", "os.environ")}


def names_used(path: Path) -> set[str]:
    """Dotted names of a module: imports, and attributes such as os.environ."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    return used


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("pipeline/model", "torch.distributed"),
        ("pipeline/data", "torch.distributed"),
        ("pipeline/data", "os.environ"),
        ("pipeline/eval", "os.environ"),
    ],
)
def test_ranks_reach_these_as_arguments(folder: str, forbidden: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    guilty = [
        str(path.relative_to(ROOT))
        for path in files
        if any(name == forbidden or name.startswith(f"{forbidden}.") for name in names_used(path))
        and (str(path.relative_to(ROOT)), forbidden) not in PASSES_ON
    ]
    assert guilty == []
