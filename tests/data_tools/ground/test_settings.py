"""The one grammar of the command lines: what each spelling means, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from data_tools.ground import exit_codes
from data_tools.ground.command_line import run
from data_tools.ground.help_text import help_text
from data_tools.ground.settings import Command, Refused, parse


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True, kw_only=True)
class Settings:
    data_path: Path
    """Where the data
    lies."""
    num: int = 3
    share: float | None = 0.5
    colour: Colour = Colour.red
    leave_out: bool = False


COMMAND = Command(
    name="some.command",
    purpose="Does it.",
    settings=Settings,
    example="data",
    bare_word=True,
    check=lambda given: [] if given.get("num", 1) else ["num=0: give 1 or more"],
)
ALL = Settings(data_path=Path("x"), num=7, share=None, colour=Colour.blue, leave_out=True)


@pytest.mark.parametrize(
    "line",
    [
        "x num=7 share=null colour=blue leave_out=true",
        "--num 7 --share null --colour=blue --leave-out data_path=x",
        "--leave-out x --num=7 share=null --colour blue",
        "--data-path x leave_out=true num=7 --share=null colour=blue",
    ],
)
def test_every_spelling_means_the_same(line: str) -> None:
    assert parse(COMMAND, line.split()) == (ALL, [])


def test_defaults_and_a_bare_path_with_an_equals_sign() -> None:
    settings, _ = parse(COMMAND, ["dir/a=b"])
    assert settings == Settings(data_path=Path("dir/a=b"))


def test_every_problem_is_named_with_its_fix() -> None:
    with pytest.raises(Refused) as refused:
        parse(COMMAND, ["num=many", "--share=some", "colour=green", "leave_out=maybe", "nmu=3"])
    for part in (
        "num=many: give a whole number",
        "share some: give a number",
        "colour=green: give one of red, blue",
        "leave_out=maybe: give true or false",
        "nmu=3: there is no setting nmu; do you mean num?",
        "data_path is not given: add data_path=",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["x", "y"], "y: give name=value"),
        (["x", "--num"], "--num: give its value after it"),
        (["x", "--numb", "3"], "--numb: there is no setting numb; do you mean num?"),
        (["x", "num="], "num=: give a whole number"),
        (["x", "num=0"], "num=0: give 1 or more"),
        (["x", "zzz=1"], "the settings are data_path, num, share, colour, leave_out"),
        (["x", "-q"], "-q: give name=value"),
    ],
)
def test_refused(words: list[str], problem: str) -> None:
    with pytest.raises(Refused, match=f".*{problem}"):
        parse(COMMAND, words)


def test_help_names_each_setting_and_is_as_wide_as_asked(capsys) -> None:
    text = help_text(COMMAND, 60)
    for part in (
        "data_path: path; must be given",
        "Where the data lies.",
        "num: int; default 3",
        "share: number or null; default 0.5",
        "colour: one of red, blue; default red",
        "leave_out: true or false; default false",
        "python -m some.command data",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 60
    assert run(COMMAND, ["-h"], lambda settings, rest: 1) == 0
    assert exit_codes.LINE in " ".join(capsys.readouterr().out.split())


def test_exit_codes(capsys) -> None:
    def interrupted(settings: Settings, rest: list[str]) -> int:
        raise KeyboardInterrupt

    assert run(COMMAND, ["x"], interrupted) == exit_codes.INTERRUPTED == 130
    assert run(COMMAND, [], lambda settings, rest: 0) == exit_codes.REFUSED == 2
    assert run(COMMAND, ["x"], lambda settings, rest: 75) == exit_codes.STOPPED
    assert "Traceback" not in capsys.readouterr().err
