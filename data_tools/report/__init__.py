"""The report stage: the ledger, with the fate of every candidate, and the page report.html."""

from data_tools.report.stage import inputs, run

__all__ = ["inputs", "run"]
