"""The flow: stages alone, up to a stage, shares of a stage; nothing is done twice."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from unittest.mock import Mock

import pytest

from data_tools import build
from data_tools.config import ConfigError, load_job
from data_tools.curate.captions import read_boilerplate, read_terms
from data_tools.ground.lock import take
from data_tools.tables.schema import DataError
from data_tools.work.tasks import ALL, Task, parse_task


@pytest.fixture
def words(tmp_path):
    (tmp_path / "queries.txt").write_text("cat\ndog\n")
    rows = [f"http://{n}.example.org/{n}.jpg,a {('cat', 'dog')[n % 2]} {n}\n" for n in range(20)]
    for name, part in (("a", rows[:10]), ("b", rows[10:])):
        (tmp_path / f"{name}.csv").write_text("url,caption\n" + "".join(part))
    return [
        f"queries.path='{tmp_path / 'queries.txt'}'",
        f"out_dir='{tmp_path / 'data'}'",
        "source=pool",
        f"sources.pool.paths=['{tmp_path}/*.csv']",
        "sources.contact=tests@example.org",
    ]


def told(capsys):
    """Stage -> what its summary line ends with. Queries, match and search also tell of files."""
    stages = {stage.name for stage in build.STAGES}
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in lines if line.split(":")[0] in stages]
    return {line.split(":")[0]: line.rsplit("(", 1)[-1].rstrip(")") for line in lines}


def test_up_to_a_stage_and_on_from_there(words, capsys):
    assert build.main(["--until", "match", *words]) == 0
    assert list(told(capsys)) == ["queries", "match"]
    assert build.main([*words, "--until", "balance"]) == 0
    second = told(capsys)
    assert list(second) == ["queries", "match", "search", "candidates", "balance"]
    assert second["queries"] == second["match"] == "unchanged" != second["search"]


def test_a_second_build_in_one_folder_is_refused_with_the_first_one_s_name(
    words, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "data"
    folder.mkdir()
    with take(folder / ".lock"):
        assert build.main(["--until", "queries", *words]) == 2
        told = capsys.readouterr().err
        assert f"another build is at work in {folder} (process {os.getpid()} on " in told
        assert "give another out_dir" in told and not (folder / "config.yaml").exists()
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks")))
    assert build.main(["--until", "queries", *words]) == 2
    told = capsys.readouterr().err
    assert f"out_dir = {folder}: {folder / '.lock'}: the file system gives no locks" in told


def test_a_stage_alone_wants_those_before_it(words, capsys):
    assert build.main(["--stage", "balance", *words]) == 1
    assert "balance needs the stage queries" in capsys.readouterr().err
    assert build.main(["--until", "candidates", *words]) == 0
    assert build.main(["--stage", "balance", *words]) == 0
    # other settings before it: what lies there was made with others
    assert build.main(["--stage", "balance", *words, "sources.pool.license=CC0"]) == 1
    assert "needs the stage match" in capsys.readouterr().err


def test_shares_of_a_stage_are_taken_up_by_the_whole(words, tmp_path, capsys):
    assert build.main(["--stage", "queries", *words]) == 0
    for index in (1, 0, 1):
        assert build.main(["--stage", "match", "--task", f"{index}/2", *words]) == 0
    shares = {file.name: file.stat().st_mtime_ns for file in _matched(tmp_path)}
    assert len(shares) == 2
    assert build.main(["--until", "candidates", *words]) == 0
    assert {file.name: file.stat().st_mtime_ns for file in _matched(tmp_path)} == shares


def _matched(tmp_path):
    return sorted((tmp_path / "data" / "tables" / "matched").glob("*.parquet"))


def redone(overrides, touch):
    """The stages that a change of the files makes run again."""
    job = load_job(overrides)
    before = {stage.name: chain for stage, chain in build.chained(job)}
    assert before == {stage.name: chain for stage, chain in build.chained(job)}
    touch()
    return [stage.name for stage, chain in build.chained(job) if chain != before[stage.name]]


def test_lists_and_evaluation_sets_that_change_under_their_names(words, tmp_path):
    after_crawl = ["curate", "rebalance", "pack", "report"]
    terms, phrases = tmp_path / "terms.txt", tmp_path / "phrases.txt"
    pictures, tar = tmp_path / "eval" / "a", tmp_path / "eval" / "b.tar"
    pictures.mkdir(parents=True)
    for file in (terms, phrases, pictures / "1.jpg", tar):
        file.write_text("one\n")
    given = [*words, f"curate.unsafe_terms_path={terms}", f"curate.boilerplate_path={phrases}"]
    given.append(f"curate.evaluation_sets=[{tmp_path / 'eval'}]")
    for file in (terms, phrases):  # of the same length, in the same second
        assert redone(given, lambda file=file: file.write_text("two\n")) == after_crawl
        assert redone(given, lambda file=file: os.utime(file, (1, 1))) == []
    assert redone(given, lambda: (pictures / "2.png").write_text("")) == after_crawl
    assert redone(given, lambda: tar.write_text("longer\n")) == after_crawl
    assert redone(given, lambda: (pictures / "note.txt").write_text("no picture")) == []
    assert redone(given, lambda: (pictures / "1.jpg").unlink()) == after_crawl


def test_tables_of_faces_that_change_under_their_names(words, tmp_path):
    boxes = tmp_path / "boxes.parquet"
    boxes.write_bytes(b"one")
    given = [*words, f"crawl.face_boxes.paths=[{tmp_path}/*.parquet]"]
    again = redone(given, lambda: boxes.write_bytes(b"other"))
    assert again == ["crawl", "curate", "rebalance", "pack", "report"]


def test_a_list_that_is_gone_or_no_text_is_named(words, tmp_path, capsys):
    assert build.main([*words, f"curate.unsafe_terms_path={tmp_path}/no.txt"]) == 2
    assert f"curate.unsafe_terms_path = {tmp_path}/no.txt: no such file" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for read in (read_terms, read_boilerplate):
        with pytest.raises(DataError, match="latin.txt is not UTF-8.*save it as UTF-8"):
            read(tmp_path / "latin.txt")


@pytest.mark.parametrize(("table", "stage"), [("candidates", "balance"), ("queries", "match")])
def test_a_table_that_somebody_damaged_is_named(words, tmp_path, capsys, table, stage):
    assert build.main(["--until", "balance", *words]) == 0
    before = _files(tmp_path / "data")
    file = tmp_path / "data" / "tables" / f"{table}.parquet"
    whole = file.read_bytes()
    for content in (b"", b"garbage", whole[:-20]):
        file.write_bytes(content)
        (tmp_path / "data" / "tables" / "done" / f"{stage}.json").unlink(missing_ok=True)
        assert build.main(["--stage", stage, *words]) == 1
        told = capsys.readouterr().err
        assert f"{table}.parquet: not readable as parquet" in told and "tables/done" in told
    file.unlink()
    shutil.rmtree(tmp_path / "data" / "tables" / "done")
    assert build.main(["--until", "balance", *words]) == 0
    assert _files(tmp_path / "data") == before


def _files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("task", ["2/2", "x", "-1/2", "1"])
def test_a_task_that_is_none(words, task, capsys):
    assert build.main(["--stage", "match", f"--task={task}", *words]) == 2
    assert f"--task {task}: give I/N" in capsys.readouterr().err


def test_a_stage_that_is_not_divided(words, capsys):
    build.main(["--until", "candidates", *words])
    assert build.main(["--stage", "balance", "--task", "0/2", *words]) == 2
    assert "balance is not divided" in capsys.readouterr().err


def test_a_list_of_queries_needs_nobody_to_ask(words, capsys):
    assert build.main(["--stage", "queries", *words[:2]]) == 0
    assert build.main([*words[:2], "--until", "queries"]) == 0
    assert told(capsys)["queries"] == "unchanged"
    assert build.main(words[:2]) == 2
    assert "sources: none is enabled" in capsys.readouterr().err


@pytest.mark.parametrize("contact", ["caf\u00e9@example.org", "nobody"])
def test_a_contact_that_reaches_nobody_is_refused_before_anything_is_asked(words, capsys, contact):
    assert build.main([*words[:-1], f"sources.contact='{contact}'"]) == 2
    assert f"sources.contact = '{contact}': an e-mail" in capsys.readouterr().err


def test_a_folder_that_the_crawl_would_take_for_a_chain_of_urls_is_refused(words, capsys):
    assert build.main([*words, "out_dir='a::b'"]) == 2
    assert "out_dir = a::b" in capsys.readouterr().err


def test_no_such_stage(words, tmp_path, capsys):
    assert build.main(["--until", "balanse", *words]) == 2
    assert "--until balanse: there is no such stage" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_tasks_share_everything_once():
    units = list(range(10))
    shares = [parse_task(f"{index}/3").share(units) for index in range(3)]
    assert sorted(unit for share in shares for unit in share) == units
    assert ALL.share(units) == units
    with pytest.raises(ConfigError):
        parse_task("3/3")
    assert Task(2, 3).share([0, 1]) == []
