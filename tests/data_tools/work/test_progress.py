"""What a stage's progress shows while it works, and that it ends where it should."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from data_tools import build
from data_tools.demo.server import Scripted, serve
from data_tools.work.progress import StageProgress
from tests.data_tools.local_web import animals, job_for
from tests.data_tools.search.test_stage import search_on


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_as_stderr(monkeypatch):
    """For the body of a test: pytest puts its own stderr in place after the fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def last_bar(terminal):
    """The words of the bar as it was drawn last, without the bar itself."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[━╺╸]", "", terminal.getvalue())
    return text.rstrip().split("\r")[-1].split()


@pytest.mark.parametrize(("total", "times"), [(3, ["elapsed", "left"]), (None, ["elapsed"])])
def test_a_bar_ends_at_its_total_and_says_which_time_is_which(monkeypatch, total, times):
    terminal = terminal_as_stderr(monkeypatch)
    with StageProgress("search", total) as progress:
        progress.advance()
        progress.advance(2)
    name, count, *rest = last_bar(terminal)
    assert (name, count) == ("search", "3/3")
    assert all(re.fullmatch(r"\d:\d\d:\d\d", time) for time in rest[::2]) and rest[1::2] == times


def test_a_bar_of_a_stage_that_fails_stays_where_it_is(monkeypatch):
    terminal = terminal_as_stderr(monkeypatch)
    with pytest.raises(KeyError):
        with StageProgress("search", 3) as progress:
            progress.advance()
            raise KeyError
    assert last_bar(terminal)[:2] == ["search", "1/3"]


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StageProgress("search", 100) as progress:
        for _ in range(4):
            now[0] += 6.0
            progress.advance(10)
    assert capsys.readouterr().err == "search: 20/100 (1.7/s)\nsearch: 40/100 (1.7/s)\n"


@pytest.fixture
def ended(monkeypatch):
    """Name -> (done, total) of every progress that ended without an error."""
    found = {}
    leave = StageProgress.__exit__

    def noted(progress, kind, *rest):
        leave(progress, kind, *rest)
        if kind is None:
            found[progress.name] = (progress.done, progress.total)

    monkeypatch.setattr(StageProgress, "__exit__", noted)
    return found


def test_pairs_that_repeat_are_done_too(tmp_path, ended):
    (tmp_path / "queries.txt").write_text("cat\ndog\n")
    rows = [f"http://x.org/{n % 9}.jpg,a {('cat', 'dog')[n % 9 % 2]}\n" for n in range(20)]
    for name, part in (("a", rows[:12]), ("b", rows[12:])):
        (tmp_path / f"{name}.csv").write_text("url,caption\n" + "".join(part))
    overrides = [f"queries.path={tmp_path}/queries.txt", f"out_dir={tmp_path}/data", "source=pool"]
    pools = [f"sources.pool.paths=['{tmp_path}/*.csv']", "sources.contact=tests@example.org"]
    assert build.main(["--until", "balance", *overrides, *pools]) == 0
    assert ended == {"match": (2, 2), "candidates": (20, 20), "balance": (9, 9)}


def test_queries_without_an_answer_are_done_too(tmp_path, ended):
    with serve(animals(2)) as commons:
        commons.scripted.append(Scripted(418, "tea"))
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", "dog", "shadow"])
        job.search.max_failed_queries = 1
        assert search_on(job, paths)["failed_queries"] == 1
    assert ended == {"search commons": (3, 3)}
