"""Stage 1: the list of queries becomes the queries table."""

from data_tools.queries.stage import inputs, run

__all__ = ["inputs", "run"]
