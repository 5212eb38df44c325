"""Stage 3: search servers are asked for the queries. Each server is a module of its own that
implements the Protocol in base.py."""

from data_tools.search.stage import card_facts, run, target

__all__ = ["card_facts", "run", "target"]
