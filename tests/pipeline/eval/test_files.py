"""Scores of a step are merged by the name of the set, whatever lies there and whoever else
writes."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.eval import scored_sets, set_aside_after, write_report, write_results
from pipeline.eval.files import read_evaluations, read_examples
from pipeline.eval.report import newest_scores


def scores(top1: float, kind: str = "classification") -> dict:
    size = {"num_classes": 4} if kind == "classification" else {"num_captions": 6}
    metric = "top1" if kind == "classification" else "text_to_image_r1"
    example = {"picture": "", "class": "owl", "label": 1, "top": [], "caption": "", "image": 0}
    return {"kind": kind, "num_samples": 3, **size, metric: top1, "examples": [example]}


def top1(run_dir: Path, step: int) -> dict[str, float]:
    content = json.loads((run_dir / "eval" / f"step_{step:08d}.json").read_text())
    assert content["step"] == step
    return {name: result["top1"] for name, result in content["results"].items()}


EVALUATIONS = st.lists(
    st.tuples(
        st.sampled_from([3, 20, 1000]),
        st.dictionaries(st.sampled_from(["birds", "cars", "Ä b"]), st.floats(0, 1), min_size=1),
    ),
    max_size=8,
)


@given(EVALUATIONS)
def test_every_set_keeps_its_last_scores_of_every_step(evaluations):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        expected: dict[int, dict[str, float]] = {}
        for step, results in evaluations:
            write_results(run_dir, step, {name: scores(value) for name, value in results.items()})
            expected[step] = expected.get(step, {}) | results
        for step, results in expected.items():
            assert top1(run_dir, step) == results and scored_sets(run_dir, step) == set(results)
        found = read_evaluations(run_dir)
        assert [step for step, _ in found] == sorted(expected)
        newest = {
            name: max(step for step in expected if name in expected[step])
            for results in expected.values()
            for name in results
        }
        assert {name: entry["step"] for name, entry in read_examples(run_dir).items()} == newest
        last = max(expected, default=0)
        shown = {
            name if step == last else f"{name} (step {step})": expected[step][name]
            for name, step in newest.items()
        }
        assert {name: result["top1"] for name, result in newest_scores(found).items()} == shown


def test_the_report_has_every_set_that_was_scored(tmp_path):
    write_results(tmp_path, 40, {"birds": scores(0.25), "photos": scores(0.125, "retrieval")})
    write_results(tmp_path, 60, {"birds": scores(0.75)})
    write_results(tmp_path, 40, {"cars": scores(0.375)})
    page = write_report(tmp_path).read_text()
    assert "Scores after step 60" in page
    for words in ("<td>birds</td>", "<td>photos (step 40)</td>", "<td>cars (step 40)</td>"):
        assert words in page
    assert "75.0 %" in page and "12.5 %" in page and "37.5 %" in page and "25.0 %" not in page
    assert "photos (step 40): the five images" in page and "cars (step 40): what" in page


TORN = [
    *('{"step": 20, "resu', "", "[]", '{"results": []}', "\x00"),
    '{"step": 20, "results": {"birds": {"top1": 1}}}',
]


@pytest.mark.parametrize("text", TORN)
def test_a_file_that_cannot_be_read_is_set_aside_and_said(text, tmp_path, capsys):
    write_results(tmp_path, 10, {"birds": scores(0.5)})
    path = tmp_path / "eval" / "step_00000020.json"
    path.write_text(text)
    write_report(tmp_path)
    assert f"{path} cannot be read" in capsys.readouterr().err
    assert scored_sets(tmp_path, 20) == set()
    write_results(tmp_path, 20, {"cars": scores(0.25)})
    assert top1(tmp_path, 20) == {"cars": 0.25}
    aside = path.with_name("step_00000020.json.damaged")
    assert aside.read_text() == text and str(aside) in capsys.readouterr().err
    write_report(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ['{"step": 1, "se', "[]", "3"])
def test_examples_that_cannot_be_read_are_set_aside_and_said(text, tmp_path, capsys):
    path = tmp_path / "eval" / "examples.json"
    path.parent.mkdir()
    path.write_text(text)
    write_report(tmp_path)
    assert f"{path} cannot be read" in capsys.readouterr().err
    write_results(tmp_path, 20, {"cars": scores(0.25)})
    assert set(read_examples(tmp_path)) == {"cars"} and path.with_suffix(".json.damaged").exists()


def test_examples_of_older_versions_are_of_one_step(tmp_path):
    path = tmp_path / "eval" / "examples.json"
    path.parent.mkdir()
    old = {"step": 30, "sets": {"birds": {"kind": "classification", "examples": [1]}}}
    path.write_text(json.dumps(old))
    write_results(tmp_path, 20, {"birds": scores(0.5), "cars": scores(0.5)})
    found = read_examples(tmp_path)
    assert found["birds"]["examples"] == [1] and found["birds"]["step"] == 30
    assert found["cars"]["step"] == 20


def test_a_run_that_goes_back_sets_later_scores_aside(tmp_path):
    for step in (10, 20, 30):
        write_results(tmp_path, step, {"birds": scores(step / 100)})
    write_results(tmp_path, 10, {"cars": scores(0.5)})
    later = (tmp_path / "eval" / "step_00000030.json").read_text()
    assert set_aside_after(tmp_path, 20) == [30]
    assert (tmp_path / "eval" / "step_00000030.json.outdated").read_text() == later
    assert [step for step, _ in read_evaluations(tmp_path)] == [10, 20]
    assert set(read_examples(tmp_path)) == {"cars"}  # those of the birds were of step 30
    assert set_aside_after(tmp_path / "other", 20) == []
    assert not (tmp_path / "other").exists()


def write_many(run_dir: Path, number: int) -> None:
    for repeat in range(10):
        write_results(run_dir, 5, {f"set {number} {repeat}": scores(0.5)})


def test_two_processes_at_one_step_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(top1(tmp_path, 5)) == len(read_examples(tmp_path)) == 30


def test_what_a_killed_writer_left_goes(tmp_path):
    folder = tmp_path / "eval"
    folder.mkdir()
    left = folder / ".step_00000005.json.0123abcd.tmp"
    left.write_text("{")
    write_results(tmp_path, 5, {"birds": scores(0.5)})
    assert not left.exists()
