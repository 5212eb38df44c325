"""Every setting of both halves has a text for the help of the commands."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_setting_has_a_docstring() -> None:
    paths = [ROOT / "pipeline/config/schema.py", *(ROOT / "data_tools/config").glob("*.py")]
    bare, described = [], 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.decorator_list:
                continue
            for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    if isinstance(following, ast.Expr) and isinstance(
                        following.value, ast.Constant
                    ):
                        described += 1
                    else:
                        bare.append(f"{path.name}: {node.name}.{ast.unparse(statement.target)}")
    assert bare == []
    assert described > 250
