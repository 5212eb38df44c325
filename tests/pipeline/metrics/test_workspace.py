"""The view that is sent to W&B, looked at without sending it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.metrics import MetricsProcessor, processor
from pipeline.metrics.workspace import (
    SECTIONS,
    WorkspaceError,
    build_workspace,
    main,
    save_workspace,
)
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, lines, step_metrics, take, world

ROOT = Path(__file__).parents[3]


def sections() -> dict[str, dict]:
    view = build_workspace("team", "foxes")._spec
    assert (view["entity"], view["project"]) == ("team", "foxes")
    told = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section for section in told}


def test_sections_charts_and_axes():
    told = sections()
    assert list(told) == ["train", "eval", "perf", "data"]
    for name, section in told.items():
        assert section["isOpen"] and len(section["panels"]) == len(SECTIONS[name])
        for panel in section["panels"]:
            assert panel["viewType"] == "Run History Line Plot"
            assert panel["config"]["xAxis"] == "train/samples_seen"
    loss = told["train"]["panels"][0]["config"]
    assert loss["metrics"] == ["train/loss", "train/loss_mean"]
    assert (loss["smoothingType"], loss["smoothingWeight"]) == ("exponentialTimeWeighted", 0.6)
    assert loss["showOriginalAfterSmoothing"]
    assert told["train"]["panels"][1]["config"]["smoothingType"] == "none"
    assert told["eval"]["panels"][0]["config"]["metricRegex"] == "^eval/.*/top1$"
    assert told["eval"]["panels"][0]["config"]["useMetricRegex"]


def test_every_chart_shows_what_a_run_logs(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(processor, "peak_of", lambda device, precision: 100.0)
    metrics, state = MetricsProcessor(job(tmp_path), world()), TrainState()
    metrics.start(state)
    take(metrics, state, step_metrics(top1=[0.5, 0.5]))
    metrics.log(state)
    scores = {"top1": 0.5, "text_to_image_r1": 0.5, "image_to_text_r1": 0.5}
    metrics.log_eval(state, {"toys": scores})
    logged = {name for line in lines(tmp_path / "metrics.jsonl") for name in line}
    for charts in SECTIONS.values():
        for title, names, _ in charts:
            for name in names:
                if name.endswith("$"):
                    assert any(re.search(name, one) for one in logged), title
                else:
                    assert name in logged, title


@pytest.mark.parametrize("target", ["foxes", "/foxes", "team/", "team/foxes/run", ""])
def test_a_target_that_is_no_project_is_refused(target):
    with pytest.raises(WorkspaceError, match="is no entity/project"):
        save_workspace(target)


def test_usage(capsys):
    assert main([]) == main(["team/foxes", "more"]) == 2
    error = capsys.readouterr().err
    assert "project is not given: add project=" in error and "more: give name=value" in error
    assert main(["--help"]) == 0
    assert "Usage: python -m pipeline.metrics.workspace PROJECT" in capsys.readouterr().out


def run_module(tmp_path: Path, **variables: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.metrics.workspace", "team/foxes"],
        cwd=ROOT,
        env=kept | {"HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.slow
def test_without_a_key_or_a_server_the_command_says_so(tmp_path):
    code, text = run_module(tmp_path)
    assert code == 1 and text.startswith("error: no W&B key of the right form is at hand")
    key = "abcd" * 10
    code, text = run_module(tmp_path, WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9")
    assert code == 1 and "W&B did not take the view for team/foxes" in text and key not in text


def test_without_the_package_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(WorkspaceError, match=r"pip install 'clip-pretrain\[wandb\]'"):
        build_workspace("team", "foxes")
