"""Libraries that only some sources of queries need: the extra `queries` installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from data_tools.tables.schema import DataError


def load(module: str, needed_by: str) -> ModuleType:
    """Import `module`. Raises DataError, which names the command to install it, if it is
    missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{needed_by} needs the library {module} ({error}): "
            f"pip install 'clip-pretrain[queries]'"
        ) from error
