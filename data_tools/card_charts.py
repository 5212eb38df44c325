"""The card's charts, as data URIs of SVG. Numbers only: no text of the web gets into a chart."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BEFORE, AFTER = "#8c959f", "#0969da"


def pairs_per_query(found: np.ndarray, packed: np.ndarray, max_per_query: int) -> str:
    """Rank-frequency, log-log: what balancing and link rot made of the distribution of queries."""
    figure, axes = _axes()
    for counts, colour, label in ((found, BEFORE, "found"), (packed, AFTER, "packed")):
        ranked = np.sort(counts[counts > 0])[::-1]
        axes.plot(
            np.arange(1, len(ranked) + 1), ranked, ".-", color=colour, ms=3, lw=1, label=label
        )
    if found.max(initial=0) > max_per_query:
        axes.axhline(max_per_query, color="#cf222e", lw=0.8, ls="--", label=f"t = {max_per_query}")
    axes.set(xscale="log", yscale="log", xlabel="rank of the query", ylabel="pairs")
    axes.legend(frameon=False)
    return _svg(figure)


def caption_words(histogram: np.ndarray) -> str:
    """Entry w of the histogram is the number of captions of w words; the last, those of more."""
    figure, axes = _axes()
    axes.bar(np.arange(len(histogram)), histogram, color=AFTER, width=0.9)
    last = len(histogram) - 1
    ticks = [*range(0, last - 2, 5), last]
    axes.set_xticks(ticks, [str(tick) for tick in ticks[:-1]] + [f">{last - 1}"])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="words in the caption", ylabel="packed pairs")
    return _svg(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    # a fixed salt and no date: equal data give equal bytes
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "card"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()
