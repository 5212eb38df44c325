"""The loss and its benchmark start on any GPU machine that has torch and triton, and no more."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NEEDED = {"torch", "triton"}
PEERS = {"memeff", "inf_cl"}  # imported inside functions, where they are installed
BENCHMARK = ("bench_loss", "bench_loss_gpu", "loss_accuracy", "loss_providers", "peak_memory")
FILES = [
    ROOT / "pipeline/__init__.py",
    *sorted((ROOT / "pipeline/loss").glob("*.py")),
    *(ROOT / f"tests/benchmarks/{name}.py" for name in BENCHMARK),
    *(
        ROOT / name
        for name in ("tests/__init__.py", "tests/gloo.py", "tests/benchmarks/__init__.py")
    ),
]


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in FILES]
    own += ["pipeline.loss", "tests.benchmarks"]
    for node in ast.walk(tree):
        for name in _imported(node):
            package = name.split(".")[0]
            if package in ("pipeline", "tests"):
                assert name in own or name.rsplit(".", 1)[0] in own, name
            elif node in tree.body:
                assert package in NEEDED | sys.stdlib_module_names, name
            else:
                assert package in NEEDED | PEERS | sys.stdlib_module_names, name
