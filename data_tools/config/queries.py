"""Settings of the queries stage: where the list of concepts comes from."""

import os
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class QueriesConfig:
    path: str = ""
    """Text file of the user's queries: one a line, UTF-8; blank lines and lines that start with #
    are skipped."""


def problems(config: QueriesConfig) -> list[str]:
    if not config.path:
        return ["queries.path is not given: add queries.path=FILE (one query a line)"]
    if not os.path.isfile(config.path):
        return [f"queries.path = {config.path}: no such file; one query a line, UTF-8"]
    return []
