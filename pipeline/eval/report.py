"""runs/X/report.html: curves, scores and examples of a run, in one file that needs no other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.ground.aside import write_text_aside
from pipeline.eval.charts import line_charts
from pipeline.eval.files import Scores, read_evaluations, read_examples
from pipeline.eval.protocols import EvalError
from pipeline.eval.results import HEADER, METRICS, table_rows

if TYPE_CHECKING:
    import jinja2

CHARTS = (
    ("train/loss", "loss of the global batch"),
    ("train/logit_scale", "logit scale (1 / temperature)"),
    ("perf/samples_per_second", "samples per second"),
)
"""(key in metrics.jsonl, title of its chart)."""

TEMPLATES = Path(__file__).with_name("templates")


def write_report(run_dir: Path) -> Path:
    """Read metrics.jsonl and eval/*.json, both optional; write report.html and return its path. The
    table has every set that was ever scored, with its newest scores.

    Raises EvalError when metrics.jsonl is damaged.
    """
    metrics = read_metrics(run_dir / "metrics.jsonl")
    evaluations = read_evaluations(run_dir)
    newest = evaluations[-1][0] if evaluations else None
    page = _template().render(
        title=f"Run {run_dir.resolve().name}",
        training_charts=_training_charts(metrics),
        header=HEADER,
        score_rows=table_rows(newest_scores(evaluations)),
        score_step=newest,
        score_charts=_score_charts(evaluations),
        sets={
            _named(name, entry["step"], newest): entry
            for name, entry in read_examples(run_dir).items()
        },
        footer=_footer(metrics),
    )
    path = run_dir / "report.html"
    write_text_aside(path, page)
    return path


def _template() -> jinja2.Template:
    """The template of the page. It escapes every value; a missing one raises UndefinedError."""
    # imported here: every rank imports this module, and one makes the page
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl by ascending step. Lines of the same step are merged; where both have
    a key, the later value is taken.

    A last line that a killed run left unfinished is skipped; any other damage raises EvalError.
    """
    if not path.exists():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise EvalError(
                f"{path}, line {number} is no metrics line ({error!r}): remove it"
            ) from error
        by_step[step] = by_step.get(step, {}) | entry
    return [by_step[step] for step in sorted(by_step)]


def newest_scores(evaluations: Sequence[tuple[int, Scores]]) -> Scores:
    """The newest scores of each set, those of the newest evaluation first; the name of a set that
    was last scored at an earlier step says so."""
    newest: Scores = {}
    seen: set[str] = set()
    for step, results in reversed(evaluations):
        for name, result in results.items():
            if name not in seen:
                newest[_named(name, step, evaluations[-1][0])] = result
        seen |= results.keys()
    return newest


def _named(name: str, step: int, newest: int | None) -> str:
    return name if step == newest else f"{name} (step {step})"


def _training_charts(metrics: list[dict[str, Any]]) -> str:
    """SVG of the keys in CHARTS that the run has logged; empty if it logged none."""
    series = []
    for key, title in CHARTS:
        points = [
            (line["step"], line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))
        ]
        if points:
            series.append((title, points))
    return line_charts(series) if series else ""


def _score_charts(evaluations: Sequence[tuple[int, Scores]]) -> str:
    """SVG of the first metric of each set over the steps; empty with fewer than two evaluations."""
    if len(evaluations) < 2:
        return ""
    last: Scores = {}
    for _, results in reversed(evaluations):
        last = last | {name: result for name, result in results.items() if name not in last}
    series = []
    for name, result in last.items():
        metric = next((key for key in METRICS if key in result), None)
        points = [
            (step, 100 * results[name][metric])
            for step, results in evaluations
            if metric in results.get(name, {})
        ]
        if metric is not None:
            series.append((f"{name}: {METRICS[metric]}, %", points))
    return line_charts(series) if series else ""


def _footer(metrics: list[dict[str, Any]]) -> str:
    if not metrics:
        return "No metrics.jsonl."
    last = metrics[-1]
    seen = last.get("train/samples_seen")
    samples = f"{seen:,.0f} samples seen in " if seen is not None else ""
    return f"{samples}{last['step']:,} steps. From metrics.jsonl and eval/ beside this file."
