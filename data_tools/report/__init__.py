"""Stage 10: the ledger, with the fate of every candidate, and the data set's card, report.html."""

from data_tools.report.stage import inputs, run

__all__ = ["inputs", "run"]
