"""runs/X/report.html: curves, scores and examples of a run, in one file that needs no other."""

from __future__ import annotations

import html
import json
import math
import os
from pathlib import Path
from typing import Any

from pipeline.eval.charts import line_charts
from pipeline.eval.protocols import EvalError
from pipeline.eval.results import HEADER, METRICS, table_rows

CHARTS = (
    ("train/loss", "loss of the global batch"),
    ("train/logit_scale", "logit scale (1 / temperature)"),
    ("perf/samples_per_second", "samples per second"),
)
"""Key in metrics.jsonl: the chart's title."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 66em; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .2em .9em .2em 0; text-align: left;
       border-bottom: 1px solid #d8dee4; } td.number { text-align: right;
       font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; }
.example { display: flex; flex-wrap: wrap; gap: .8em; align-items: flex-start; margin: 1.2em 0;
       border-top: 1px solid #d8dee4; padding-top: .8em; }
.example p { flex-basis: 100%; margin: 0; }
figure { margin: 0; width: 96px; font-size: 12px; text-align: center; }
figure img { width: 96px; height: 96px; object-fit: contain; background: #fff;
       outline: 1px solid #d8dee4; }
.right img { outline: 3px solid #1a7f37; }
ol { margin: 0; padding-left: 1.6em; } li.right { color: #1a7f37; font-weight: 600; }
footer { margin-top: 3em; color: #59636e; font-size: 13px; }
"""


def write_report(run_dir: Path) -> Path:
    """Read metrics.jsonl and eval/*.json, both optional; write report.html and return its path."""
    metrics = read_metrics(run_dir / "metrics.jsonl")
    steps = _step_files(run_dir / "eval")
    examples_file = run_dir / "eval" / "examples.json"
    examples = _read(examples_file)["sets"] if examples_file.exists() else {}
    sections = [_curves(metrics), _scores(steps), _history(steps)]
    for name, told in examples.items():
        if told["kind"] == "classification":
            sections.append(_classified(name, told["examples"]))
        else:
            sections.append(_retrieved(name, told["examples"]))
    title = f"Run {_text(run_dir.resolve().name)}"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>{_footer(metrics)}</footer></body></html>\n"
    )
    path = run_dir / "report.html"
    aside = path.with_name(".report.html.tmp")
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl by ascending step, the later of two lines of one step winning by key.

    A last line that a killed run left unfinished is passed over; any other damage raises EvalError.
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


def _step_files(folder: Path) -> list[dict[str, Any]]:
    """All evaluations of the run, the oldest first: zero-padded names sort by step."""
    return [_read(path) for path in sorted(folder.glob("step_*.json"))]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _curves(metrics: list[dict[str, Any]]) -> str:
    series = []
    for key, title in CHARTS:
        points = [
            (line["step"], line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))
        ]
        if points:
            series.append((title, points))
    return f"<h2>Training</h2>\n{line_charts(series)}" if series else ""


def _scores(steps: list[dict[str, Any]]) -> str:
    if not steps:
        return ""
    header = "".join(f"<th>{_text(cell)}</th>" for cell in HEADER)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{_text(cell)}</td>' if column >= 3 else f"<td>{_text(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in table_rows(steps[-1]["results"])
    )
    return (
        f"<h2>Scores after step {_text(steps[-1]['step'])}</h2>\n"
        f"<table><tr>{header}</tr>\n{body}</table>\n"
        "<p>Intervals are over the test samples (Wilson); another seed moves the score as well. "
        "Equal scores count against the model.</p>"
    )


def _history(steps: list[dict[str, Any]]) -> str:
    """How the first metric of each set moved, when there was more than one evaluation."""
    if len(steps) < 2:
        return ""
    series = []
    for name, last in steps[-1]["results"].items():
        metric = next((key for key in METRICS if key in last), None)
        points = [
            (entry["step"], 100 * entry["results"][name][metric])
            for entry in steps
            if metric in entry["results"].get(name, {})
        ]
        if metric is not None:
            series.append((f"{name}: {METRICS[metric]}, %", points))
    return f"<h2>Scores over training</h2>\n{line_charts(series)}"


def _classified(name: str, examples: list[dict[str, Any]]) -> str:
    parts = [f"<h2>{_text(name)}: what the model sees</h2>"]
    for example in examples:
        guesses = "".join(
            (
                f'<li class="right">{_text(item["class"])} ({item["score"]:.2f}) &#10003;</li>'
                if item["label"] == example["label"]
                else f"<li>{_text(item['class'])} ({item['score']:.2f})</li>"
            )
            for item in example["top"]
        )
        parts.append(
            f'<div class="example">{_figure(example["picture"], example["class"], False)}'
            f"<ol>{guesses}</ol></div>"
        )
    return "\n".join(parts) if examples else ""


def _retrieved(name: str, examples: list[dict[str, Any]]) -> str:
    parts = [f"<h2>{_text(name)}: the five images nearest to a caption</h2>"]
    for example in examples:
        figures = "".join(
            _figure(item["picture"], f"{item['score']:.2f}", item["image"] == example["image"])
            for item in example["top"]
        )
        parts.append(f'<div class="example"><p>{_text(example["caption"])}</p>{figures}</div>')
    return "\n".join(parts) if examples else ""


def _figure(picture: str, caption: str, right: bool) -> str:
    marked = ' class="right"' if right else ""
    image = f'<img src="{_text(picture)}" alt="">' if picture else ""
    return f"<figure{marked}>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _footer(metrics: list[dict[str, Any]]) -> str:
    if not metrics:
        return "No metrics.jsonl."
    last = metrics[-1]
    seen = last.get("train/samples_seen")
    told = f"{seen:,.0f} samples seen in " if seen is not None else ""
    return f"{told}{last['step']:,} steps. From metrics.jsonl and eval/ beside this file."
