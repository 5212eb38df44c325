"""The charts of the report, as data URIs of SVG. They show numbers only: no text from the web gets
into a chart."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

BEFORE, AFTER = "#8c959f", "#0969da"
# Points of a line, at most: a line through 500,000 ranks would be megabytes of SVG, and this many
# points show the same curve.
MAX_POINTS = 400


def pairs_per_query(found: np.ndarray, packed: np.ndarray, max_per_query: int) -> str:
    """Draw pairs per query by rank, log-log, as found and as packed: what balancing and link rot
    did to the distribution."""
    figure, axes = _axes()
    for counts, colour, label in ((found, BEFORE, "found"), (packed, AFTER, "packed")):
        ranked = np.sort(counts[counts > 0])[::-1]
        shown = _log_spaced(len(ranked))
        axes.plot(shown + 1, ranked[shown], ".-", color=colour, ms=3, lw=1, label=label)
    if found.max(initial=0) > max_per_query:
        axes.axhline(max_per_query, color="#cf222e", lw=0.8, ls="--", label=f"t = {max_per_query}")
    axes.set(xscale="log", yscale="log", xlabel="rank of the query", ylabel="pairs")
    axes.legend(frameon=False)
    return _svg(figure)


def _log_spaced(number: int) -> np.ndarray:
    """Return indexes below `number`, evenly spaced on a log scale, with the first and the last."""
    if number <= MAX_POINTS:
        return np.arange(number)
    return np.unique(np.geomspace(1, number, MAX_POINTS).round().astype(np.int64)) - 1


def histogram(counts: np.ndarray, counted: str, first: int = 0) -> str:
    """Draw bars for `counts`: entry i is the number of packed pairs with the value i, the last
    entry that of pairs with larger values. Values below `first` are left out."""
    figure, axes = _axes()
    over = counts[-1] > 0
    if not over:  # leave out an empty tail, but show at least ten bars
        counts = counts[: max(first + 10, int(np.flatnonzero(counts).max(initial=0)) + 1)]
    last = len(counts) - 1
    axes.bar(np.arange(first, last + 1), counts[first:], color=AFTER, width=0.9)
    step = 5 if last > 20 else 2 if last > 11 else 1
    ticks = [*range(first, last - step // 2, step), last]
    axes.set_xticks(ticks, [f">{last - 1}" if over and n == last else str(n) for n in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel=counted, ylabel="packed pairs")
    return _svg(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    # with a fixed salt and no date, equal data give equal bytes
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()
