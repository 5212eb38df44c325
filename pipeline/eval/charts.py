"""Line charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence

Series = tuple[str, Sequence[tuple[float, float]]]
"""Title, and (step, value) points."""


def line_charts(series: Sequence[Series]) -> str:
    """One <svg> with one chart per series, three in a row; the same input gives the same bytes."""
    # imported here: every rank imports this module, and one draws
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for number, (title, points) in enumerate(series, start=1):
        axes = figure.add_subplot(rows, columns, number)
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, linewidth=1.3, color="#0969da", marker="." if len(points) < 30 else ""
        )
        # "$" would start a formula in matplotlib, and a set's name may hold one.
        axes.set_title(title.replace("$", r"\$"), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]  # inside HTML neither XML declaration nor doctype may stand
