"""Scores as a table."""

from __future__ import annotations

from typing import Any, NamedTuple

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class_recall": "mean recall a class",
    **{f"image_to_text_r{k}": f"image to text, recall at {k}" for k in (1, 5, 10)},
    **{f"text_to_image_r{k}": f"text to image, recall at {k}" for k in (1, 5, 10)},
}
"""Name of each key of the results in the table."""


class Row(NamedTuple):
    name: str
    size: str
    metric: str
    score: str
    interval: str
    chance: str


HEADER = Row("set", "size", "metric", "score", "95 % interval", "chance")


def table_rows(results: dict[str, dict[str, Any]]) -> list[Row]:
    """One row per metric, as text; then one per single template, to compare the ensemble with."""
    rows = []
    for name, result in results.items():
        size = f"{result['num_samples']:,} images, "
        if result["kind"] == "classification":
            size += f"{result['num_classes']:,} classes"
        else:
            size += f"{result['num_captions']:,} captions"
        for metric, shown in METRICS.items():
            if metric in result:
                interval = result.get(f"{metric}_interval")
                between = " to ".join(_percent(bound) for bound in interval) if interval else ""
                chance = result.get(f"{metric}_chance")
                chance_text = f"{100 * chance:.2f} %" if chance is not None else ""
                score = f"{_percent(result[metric])} %"
                rows.append(Row(name, size, shown, score, between, chance_text))
        for single in result.get("single_templates", []):
            shown = f'top-1 with "{single["template"]}" alone'
            rows.append(Row(name, size, shown, f"{_percent(single['top1'])} %", "", ""))
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """The table as plain text, one line per metric; empty when nothing was scored."""
    rows = table_rows(results)
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = []
    before = None
    for row in [HEADER, *rows]:
        # a set's name and size stand in its first line only
        cells = ["", "", *row[2:]] if before and row[:2] == before[:2] else list(row)
        numbers = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        words = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        lines.append("  ".join(words + numbers).rstrip())
        before = row
    return "\n".join(lines)
