"""Every command answers --help, refuses unknown settings with the nearest, with the same codes."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from data_tools.config import CONFIGURATION as DATASET
from data_tools.ground import exit_codes
from data_tools.ground.settings import Command, parse
from pipeline import commands, launch, launch_evaluation
from pipeline.config.composition import CONFIGURATION as TRAIN

ROOT = Path(__file__).parents[1]

# module with main(arguments) -> an unknown word, the nearest name
COMMANDS = {
    "data_tools.build": ("untill=crawl", "until"),
    "data_tools.plan.estimate": ("out_dri=x", "out_dir"),
    "data_tools.audit": ("leave_out_bda=true", "leave_out_bad"),
    "data_tools.subset": ("keep_shar=0.3", "keep_share"),
    "data_tools.demo.flow": ("demo.num_labls=7", "demo.num_labels"),
    "pipeline.export.__main__": ("fromat=native", "format"),
    "pipeline.score.__main__": ("manifset=m", "manifest"),
    "pipeline.data.keep_probability": ("manifst=m", "manifest"),
    "pipeline.metrics.workspace": ("projct=a/b", "project"),
    "slurm.submit": ("dry_rn=true", "dry_run"),
}


def command_of(module: str) -> Command:
    found = importlib.import_module(module)
    return found._command(False) if module == "slurm.submit" else found.COMMAND


def names_told(text: str) -> set[str]:
    return {line.partition(":")[0].strip() for line in text.splitlines() if ": " in line}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_every_setting(module, capsys):
    main = importlib.import_module(module).main
    assert main(["--help"]) == main(["-h"]) == exit_codes.DONE
    text = capsys.readouterr().out
    own = {field.name for field in dataclasses.fields(command_of(module).settings)}
    assert own <= names_told(text)
    configuration = command_of(module).configuration
    if configuration:
        assert set(configuration.types) <= names_told(text)
        for name, choices in configuration.groups.items():
            assert choices and f"{name} = {', '.join(choices)}" in " ".join(text.split())
    assert exit_codes.LINE in " ".join(text.split())
    assert "Usage: python -m" in text and "Example:" in text


@pytest.mark.parametrize("module", COMMANDS)
def test_an_unknown_setting_is_refused_with_the_nearest(module, capsys):
    word, nearest = COMMANDS[module]
    assert importlib.import_module(module).main([word]) == exit_codes.REFUSED
    assert f"{word.partition('=')[0]}; do you mean {nearest}?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [*map(command_of, COMMANDS), commands.TRAIN, commands.EVALUATE])
def test_the_example_of_the_help_is_a_command_line_that_is_taken(command):
    _, rest = parse(command, shlex.split(command.example))
    assert rest == [] or command.configuration is not None


@pytest.mark.parametrize("module", ["pipeline.train", "pipeline.evaluate"])
def test_the_commands_that_start_ranks(module, capsys):
    def rank_main(*of_rank):
        raise AssertionError("nothing is to be started")

    def main(words):
        if module == "pipeline.evaluate":
            return launch_evaluation.main(rank_main, words)
        return launch.main(module, rank_main, words)

    assert main(["--help"]) == exit_codes.DONE
    text = capsys.readouterr().out
    assert set(TRAIN.types) <= names_told(text) and f"Usage: python -m {module}" in text
    for word in ("train.warmup_step=3", "--train.warmup_step=3"):
        assert main([word]) == exit_codes.REFUSED
        assert "do you mean train.warmup_steps?" in capsys.readouterr().err


def test_help_of_a_dataset_job_on_slurm_names_its_fields(capsys):
    assert importlib.import_module("slurm.submit").main(["--shards", "--help"]) == 0
    told = names_told(capsys.readouterr().out)
    assert set(DATASET.types) <= told
    assert {name for name in TRAIN.types if name.startswith("cluster.")} <= told
    assert "train.lr" not in told


@pytest.mark.parametrize(
    "word", ["+x=1", "~model", "~train.lr", "train.lr=1,2", "model=[a", "a b", "model@x=tiny"]
)
def test_hydras_own_grammar_gives_no_traceback(word, capsys, tmp_path):
    words = [word, f"run_dir={tmp_path / 'run'}"]
    assert launch.main("pipeline.train", lambda job: 0, words) == exit_codes.REFUSED
    assert capsys.readouterr().err.startswith("error: ")


def test_the_formats_of_an_export_are_those_that_it_takes():
    from pipeline.export import FORMATS
    from pipeline.export.__main__ import ExportSettings

    allowed = typing.get_args(typing.get_type_hints(ExportSettings)["format"])
    assert set(allowed) == set(FORMATS)


@pytest.mark.parametrize("stage_path", ["list (1).txt", "café 猫 [x]{y}.txt", "a,b=c;d&e#f!'.txt"])
def test_a_path_of_any_name_is_found(stage_path, tmp_path, capsys):
    (tmp_path / stage_path).write_text("red panda\nfox\n")
    main = importlib.import_module("data_tools.build").main
    words = [f"queries.path={tmp_path / stage_path}", f"out_dir={tmp_path / stage_path}.d"]
    assert main([*words, "--until", "queries"]) == 0, capsys.readouterr().err
    assert (tmp_path / f"{stage_path}.d" / "tables").is_dir()


@pytest.mark.parametrize(
    ("module", "words", "code"),
    [
        ("data_tools.audit", ["--help"], 0),
        ("data_tools.demo", ["-h"], 0),
        ("data_tools.plan", ["out_dri=x"], 2),
        ("slurm.submit", ["--help"], 0),
        ("pipeline.train", ["--help"], 0),
    ],
)
def test_as_a_process(module, words, code):
    command = [sys.executable, "-m", module, *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    if code == 0:
        assert f"Usage: python -m {module}" in ended.stdout
