"""Stage 2: which queries occur in the captions of the pools. This is the sub-string match by which
CLIP and MetaCLIP choose their pairs.

Both sides are folded (data_tools/text/fold.py). A match must be bounded: "cat" is in "a cat!", not
in "category". Scripts without spaces between words (Chinese, Japanese, Thai, ...) have no such
bounds, so there every occurrence counts.

data_tools/text/tokens.py cuts texts at the bounds, matcher.py finds queries in them, units.py makes
the table of one unit (a pool file or a part of it), stage.py runs all units.
"""

from data_tools.match.counts import counts_per_query
from data_tools.match.stage import inputs, run, run_share

__all__ = ["counts_per_query", "inputs", "run", "run_share"]
