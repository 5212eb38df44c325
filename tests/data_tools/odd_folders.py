"""Names that a data folder may have, and that SQL and glob patterns read as something else."""

ODD_NAMES = ("run[1]", "it's", "q?x*", "a b#c")
