"""Stage 3: search servers are asked for the queries, each server in a module of its own behind one
Protocol (base.py)."""

from data_tools.search.stage import card_facts, run, target

__all__ = ["card_facts", "run", "target"]
