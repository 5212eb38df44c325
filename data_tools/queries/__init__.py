"""Stage 1: the list of queries becomes the queries table."""

from data_tools.queries.user_list import run

__all__ = ["run"]
