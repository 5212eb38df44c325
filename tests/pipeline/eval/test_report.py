"""The report is one valid page, whatever the run left, and no name can break out of its place."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import jinja2
import pytest

from pipeline.eval import EvalError, write_report, write_results

HOSTILE = "<script>alert('x')</script> \"$&"
PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Page(HTMLParser):
    """Tags with attributes, visible text, and whether every tag is closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(run_dir) -> Page:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def results() -> dict:
    return {
        f"set {HOSTILE}": {
            "kind": "classification",
            "num_samples": 4,
            "num_classes": 9,
            "top1": 0.25,
            "top1_interval": [0.1, 0.5],
            "top1_chance": 1 / 9,
            "single_templates": [{"template": HOSTILE, "top1": 0.1}],
            "examples": [
                {
                    "picture": PICTURE,
                    "label": 2,
                    "class": HOSTILE,
                    "top": [
                        {"label": 1, "class": "wrong", "score": 0.5},
                        {"label": 2, "class": HOSTILE, "score": 0.25},
                    ],
                }
            ],
        },
        "photos": {
            "kind": "retrieval",
            "num_samples": 4,
            "num_captions": 20,
            "image_to_text_r1": 0.5,
            "examples": [
                {
                    "caption": HOSTILE,
                    "image": 3,
                    "top": [
                        {"image": 0, "score": 0.9, "picture": PICTURE},
                        {"image": 3, "score": 0.8, "picture": ""},
                    ],
                }
            ],
        },
    }


def lines(path, *entries) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_whole_report(tmp_path):
    run_dir = tmp_path / "runs <b>"
    run_dir.mkdir()
    lines(
        run_dir / "metrics.jsonl",
        {"step": 10, "train/loss": 5.5, "train/logit_scale": 14.3, "perf/samples_per_second": 900},
        {"step": 20, "train/loss": float("nan"), "train/logit_scale": 14.4},
        {"step": 30, "train/loss": 4.5, "train/samples_seen": 7680.0},
        {"step": 30, "eval/photos/image_to_text_r1": 0.5},
    )
    write_results(run_dir, 20, results())
    write_results(run_dir, 30, results())
    page = parse(run_dir)
    assert page.text.count(HOSTILE) >= 4
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "b" not in names and names.count("svg") == 2
    for word in ("loss of the global batch", "logit scale", "samples per second", "25.0 %"):
        assert word in page.text
    assert "Scores after step 30" in page.text and "7,680 samples seen in 30 steps" in page.text
    right = [(tag, attrs) for tag, attrs in page.tags if attrs.get("class") == "right"]
    assert [tag for tag, _ in right] == ["li", "figure"]
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert pictures == [PICTURE, PICTURE]


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    lines(tmp_path / "metrics.jsonl", {"step": 1, "train/loss": 1.0})
    write_results(tmp_path, 1, results())
    for _, attrs in parse(tmp_path).tags:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "data:").startswith(("data:", "#")), attrs


def test_the_same_run_gives_the_same_bytes(tmp_path):
    lines(tmp_path / "metrics.jsonl", {"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0})
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_an_empty_run_has_a_report(tmp_path):
    assert "No metrics.jsonl" in parse(tmp_path).text


def test_an_unfinished_last_line_is_passed_over_and_other_damage_is_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert "1 steps. From" in parse(tmp_path).text
    path.write_text('{"step": 1, "tra\n{"step": 2, "train/loss": 2.0}\n')
    with pytest.raises(EvalError, match="metrics.jsonl, line 1 is no metrics line"):
        write_report(tmp_path)


def test_a_missing_value_raises_and_leaves_the_old_report(tmp_path):
    before = write_report(tmp_path).read_bytes()
    damaged = results()
    del damaged["photos"]["examples"][0]["caption"]
    write_results(tmp_path, 1, damaged)
    with pytest.raises(jinja2.UndefinedError, match="caption"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
