"""The table that a run prints and the files it leaves."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.eval import format_table, write_results

RESULTS = {
    "pictograms": {
        "kind": "classification",
        "num_samples": 1940,
        "num_classes": 1949,
        "top1": 0.1312,
        "top1_interval": [0.117, 0.147],
        "top1_chance": 1 / 1949,
        "mean_per_class_recall": 0.13,
        "single_templates": [{"template": "{c}", "top1": 0.1, "top5": 0.2}],
        "examples": [{"picture": "data:"}],
    },
    "photos": {
        "kind": "retrieval",
        "num_samples": 1000,
        "num_captions": 5000,
        "text_to_image_r1": 0.5,
        "text_to_image_r1_interval": [0.47, 0.53],
        "examples": [],
    },
}


def test_table():
    lines = format_table(RESULTS).split("\n")
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["set", "size", "metric", "score", "95 % interval", "chance"],
        ["pictograms", "1,940 images, 1,949 classes", "top-1", "13.1 %", "11.7 to 14.7", "0.05 %"],
        ["", "mean recall a class", "13.0 %"],
        ["", 'top-1 with "{c}" alone', "10.0 %"],
        ["photos", "1,000 images, 5,000 captions", "text to image, recall at 1"]
        + ["50.0 %", "47.0 to 53.0"],
    ]
    assert len({line.index(" %") for line in lines[1:]}) == 1  # scores stand below each other


def test_no_results_no_table():
    assert format_table({}) == ""


def test_files(tmp_path):
    path = write_results(tmp_path, 200, RESULTS)
    assert path == tmp_path / "eval" / "step_00000200.json"
    scores = json.loads(path.read_text())
    assert scores["step"] == 200 and "examples" not in scores["results"]["pictograms"]
    assert scores["results"]["pictograms"]["top1"] == 0.1312
    examples = json.loads((tmp_path / "eval" / "examples.json").read_text())
    assert examples["sets"]["pictograms"]["examples"] == [{"picture": "data:"}]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        ".lock",
        "examples.json",
        path.name,
    ]


def test_a_nan_is_not_written(tmp_path):
    broken = {"photos": {"kind": "retrieval", "text_to_image_r1": float("nan"), "examples": []}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, 1, broken)
    assert not list(tmp_path.glob("eval/step_*"))
