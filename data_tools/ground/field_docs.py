"""The documentation of dataclass fields: Python drops the string after a field, so it is read from
the source of the class."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string that follows the field, with its line breaks as single spaces.

    Fields of base classes are included; a field without a string is not in the result.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # a class without a source file, such as one that was made at runtime
        docs |= _docs_of_body(tree.body[0])
    return docs


def _docs_of_body(node: ast.stmt) -> dict[str, str]:
    docs: dict[str, str] = {}
    if not isinstance(node, ast.ClassDef):
        return docs
    for statement, following in zip(node.body, node.body[1:]):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            if isinstance(following.value.value, str):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs
