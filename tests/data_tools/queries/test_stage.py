import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_tools
from data_tools import queries
from data_tools.build import main
from data_tools.config import DatasetJob
from data_tools.config.queries import Lemmas, WordCounts
from data_tools.queries import files
from data_tools.queries.files import content_hash
from data_tools.queries.stage import Source, _merged
from data_tools.tables.schema import QUERIES, DataError, DatasetPaths, query_source, read_table
from data_tools.text.fold import fold, has_word
from tests.data_tools.odd_folders import ODD_NAMES
from tests.data_tools.queries import tiny_wordnet

TEXT = "a red car\na red car\nthe Dog barked\nthe dog barked\nthe dog slept\n"


def every_source(folder):
    """A job that reads all sources, from tiny files below `folder`."""
    job = DatasetJob(out_dir=str(folder / "out"))
    (folder / "mine.txt").write_text("Ice hockey\nDOG\n")
    (folder / "text.txt").write_text(TEXT)
    (folder / "views.txt").write_text("Red car\t900\nIce_hockey\t800\nEiffel Tower\t80\n")
    config = job.queries
    config.path = str(folder / "mine.txt")
    config.wordnet.dict_dir = str(tiny_wordnet.make(folder / "dict"))
    config.wordnet.lemmas = Lemmas.heads
    config.text.paths = [str(folder / "text.txt")]
    config.unigrams.counts, config.unigrams.min_count = WordCounts.text, 2
    config.bigrams.limit, config.bigrams.min_pair_count = 2, 2
    config.titles.paths = [str(folder / "views.txt")]
    config.composed.templates = ["{colour} {artifact}"]
    config.composed.words = {"colour": ["red", "blue"]}
    config.composed.limit = 5
    return job


def rows_of(job):
    paths = DatasetPaths(Path(job.out_dir))
    counts = queries.run(job, paths)
    return counts, read_table(paths.table("queries"), QUERIES).to_pylist(), paths


def test_sources_are_mixed_in_order_and_the_first_gives_the_origin(tmp_path, capsys):
    job = every_source(tmp_path)
    left_by_a_killed_run = tmp_path / "out" / "tables" / ".counts" / "words-00007.parquet"
    left_by_a_killed_run.parent.mkdir(parents=True)
    left_by_a_killed_run.write_bytes(b"half")
    counts, rows, paths = rows_of(job)
    found = {row["query"]: row["origin"] for row in rows}
    assert [row["query_id"] for row in rows] == list(range(len(rows)))
    assert found["Ice hockey"] == "mine.txt:1"
    assert found["DOG"] == "mine.txt:2" and "dog" not in found
    assert found["machine"] == "wordnet:n00000700"
    assert found["the"] == "unigrams:3"
    assert found["red car"].startswith("bigrams:") and "Red car" not in found
    assert found["Eiffel Tower"] == "titles:80"
    assert sum(origin.startswith("composed:") for origin in found.values()) == 5
    assert (
        counts["queries"]
        == len(rows)
        == 2
        + sum(counts[name] for name in ("wordnet", "unigrams", "bigrams", "titles", "composed"))
    )
    assert not list((paths.root / "tables").glob(".counts*"))
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["source", "read", "unusable", "duplicate", "kept", "MetaCLIP"]
    by_name = {line.split()[0]: line.split()[1:] for line in told[1:]}
    # 14 synsets: DOG twice, crane twice
    assert by_name["wordnet"] == ["14", "0", "3", "11", "86,654"]
    assert by_name["total"][-2:] == [str(len(rows)), "500,000"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(tmp_path, name):
    """Counts are spilled there, and summed by SQL that names their files."""
    results = []
    for folder in (tmp_path / "plain", tmp_path / name):
        folder.mkdir()
        job = every_source(folder)
        job.queries.text.max_keys_in_memory = 1
        counts, rows, _ = rows_of(job)
        results.append((counts, rows))
    assert results[0] == results[1]


@pytest.mark.parametrize("total", [1, 2, 9, 20])
def test_the_total_is_reached_exactly_and_nested(tmp_path, total):
    job = every_source(tmp_path)
    _, whole, _ = rows_of(job)
    job.queries.total = total
    counts, rows, _ = rows_of(job)
    assert counts["queries"] == total
    assert rows == whole[:total]


def test_too_few_queries_for_the_total_are_told(tmp_path, capsys):
    job = every_source(tmp_path)
    job.queries.total = 10_000
    counts, rows, _ = rows_of(job)
    assert f"{len(rows)} of queries.total = 10,000" in capsys.readouterr().err


def build_from_several_texts(folder, names, max_keys):
    folder.mkdir()
    job = every_source(folder)
    for name in names:
        (folder / name).write_text(f"more red things in {name[0]}\n")
    job.queries.text.paths.append(str(folder / "[xy].txt"))
    job.queries.text.max_keys_in_memory = max_keys
    queries.run(job, DatasetPaths(folder / "out"))
    return folder / "out" / "tables" / "queries.parquet"


def test_ids_do_not_depend_on_hashes_places_memory_or_the_order_of_writing(tmp_path):
    script = (
        "from pathlib import Path\n"
        "from tests.data_tools.queries.test_stage import build_from_several_texts\n"
        f"build_from_several_texts(Path({str(tmp_path / 'a')!r}), ['y.txt', 'x.txt'], 1)\n"
    )
    root = str(Path(data_tools.__file__).parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": root}
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    here = build_from_several_texts(tmp_path / "elsewhere", ["x.txt", "y.txt"], 100_000)
    there = tmp_path / "a" / "out" / "tables" / "queries.parquet"
    assert there.read_bytes() == here.read_bytes()


def test_inputs_are_the_content_of_every_file(tmp_path):
    job = every_source(tmp_path)
    before = queries.inputs(job)
    assert len(before) == 1 + 8 + 1 + 1
    for name in ("mine.txt", "dict/data.noun", "dict/index.noun", "text.txt", "views.txt"):
        path = tmp_path / name
        state = path.stat()
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        changed = queries.inputs(job)
        assert sum(a != b for a, b in zip(before, changed, strict=True)) == 1, name
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert queries.inputs(job) == before
    moved = every_source(tmp_path / "dict")
    assert queries.inputs(moved) == before


def test_a_large_text_is_read_once_for_all_commands_of_a_job(tmp_path, monkeypatch):
    job = every_source(tmp_path)
    (tmp_path / "out").mkdir(exist_ok=True)
    first = queries.inputs(job)
    read = []
    monkeypatch.setattr(
        files, "content_hash", lambda path: read.append(path.name) or content_hash(path)
    )
    assert queries.inputs(job) == first and not read
    (tmp_path / "text.txt").write_text("another text\n")
    assert queries.inputs(job) != first and read == ["text.txt"]
    (tmp_path / "out" / ".queries_inputs.json").write_text('{"half')
    queries.inputs(job)
    assert len(read) == 1 + len(first)


def test_wordfreq_is_an_input_of_its_own(tmp_path):
    job = DatasetJob(out_dir=str(tmp_path / "out"))
    job.queries.unigrams.counts = WordCounts.wordfreq
    english = queries.inputs(job)
    job.queries.unigrams.wordfreq_language = "de"
    assert len(english) == 1 and queries.inputs(job) != english


def test_words_by_wordfreq(tmp_path):
    job = DatasetJob(out_dir=str(tmp_path))
    job.queries.unigrams.counts = WordCounts.wordfreq
    job.queries.unigrams.wordfreq_min_zipf = 6.0
    counts, rows, _ = rows_of(job)
    assert (rows[0]["query"], rows[0]["origin"][:14]) == ("the", "unigrams:zipf ")
    assert 50 < counts["unigrams"] < 500
    assert not [row for row in rows if "00" in row["query"]]


def test_a_language_that_wordfreq_lacks(tmp_path):
    job = DatasetJob(out_dir=str(tmp_path))
    job.queries.unigrams.counts = WordCounts.wordfreq
    job.queries.unigrams.wordfreq_language = "tlh"
    with pytest.raises(DataError, match="wordfreq_language = tlh: wordfreq has no list; it has ar"):
        queries.inputs(job)


def test_wordfreq_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    job = DatasetJob(out_dir=str(tmp_path))
    job.queries.unigrams.counts = WordCounts.wordfreq
    with pytest.raises(DataError, match=r"pip install 'clip-pretrain\[queries\]'"):
        queries.run(job, DatasetPaths(tmp_path))


def test_sources_that_give_nothing_are_refused(tmp_path):
    job = every_source(tmp_path)
    job.queries.path = ""
    job.queries.wordnet.lemmas = Lemmas.none
    job.queries.bigrams.limit = 0
    job.queries.titles.paths = job.queries.composed.templates = []
    job.queries.unigrams.min_count = 1000
    with pytest.raises(DataError, match="gave no query: lower min_count"):
        rows_of(job)
    assert not (tmp_path / "out" / "tables" / "queries.parquet").exists()
    assert not (tmp_path / "out" / "tables" / ".counts").exists()


texts = st.lists(st.text(max_size=6) | st.sampled_from(["Cat", "cat ", "ＣＡＴ", "ß", "SS"]))


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), st.integers(0, 8), st.integers(0, 8))
def test_every_folded_form_once_and_for_the_first_source(lists, limit, total):
    def merged(limit, total):
        sources = [
            Source(f"s{n}", iter([(text, f"s{n}:{text}") for text in found]), limit)
            for n, found in enumerate(lists)
        ]
        return sources, _merged(sources, total).to_pylist()

    sources, rows = merged(limit, total)
    forms = [row["folded"] for row in rows]
    assert len(set(forms)) == len(forms)
    assert all(row["folded"] == fold(row["query"]) and has_word(row["folded"]) for row in rows)
    assert [row["query_id"] for row in rows] == list(range(len(rows)))
    assert not total or len(rows) <= total
    for source in sources:
        assert source.num_read == source.num_unusable + source.num_duplicates + source.num_kept
        assert not limit or source.num_kept <= limit
    if not limit:
        everything = [text for found in lists for text in found if has_word(fold(text))]
        firsts = list(dict.fromkeys(map(fold, everything)))
        assert forms == (firsts[:total] if total else firsts)
        for row in rows:
            first = next(n for n, f in enumerate(lists) if row["folded"] in map(fold, f))
            assert row["origin"].startswith(f"s{first}:")


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ("wordnet:n02084071", "wordnet"),
        ("unigrams:zipf 4.53", "unigrams"),
        ("composed:{ratio} 1:3", "composed"),
        ("list.txt:12", "list.txt"),
        ("a:b.txt:12", "a:b.txt"),
        ("user", "user"),
    ],
)
def test_source_of_an_origin(origin, source):
    assert query_source(origin) == source


def test_the_stage_alone_with_the_default_recipe_on_a_tiny_wordnet(tmp_path, capsys):
    every_source(tmp_path)
    overrides = [
        *("source=commons", "sources.contact=you@example.org", "queries=default"),
        *(f"out_dir={tmp_path / 'out'}", f"queries.wordnet.dict_dir={tmp_path / 'dict'}"),
        *("queries.total=60", "queries.composed.noun_categories=[animal]"),
        *("queries.unigrams.wordfreq_min_zipf=7", "queries.bigrams.min_pair_count=1"),
        "queries.composed.templates=['{colour} {animal}','{animal} {place}']",
    ]
    assert main(["--stage", "queries", *overrides]) == 0
    told = capsys.readouterr().out
    assert "60 queries" in told and "MetaCLIP" in told
    assert main(["--stage", "queries", *overrides]) == 0
    assert "60 queries (unchanged)" in capsys.readouterr().out
    (tmp_path / "dict" / "data.noun").write_text("00000100 03 n 01 thing 0 000 | a thing\n")
    assert main(["--stage", "queries", *overrides]) == 1
    assert "no noun of the category animal" in capsys.readouterr().err


WORDNET = Path("/usr/share/wordnet")


@pytest.mark.slow
@pytest.mark.skipif(not WORDNET.exists(), reason="needs WordNet: apt-get install wordnet-base")
def test_the_default_recipe_gives_the_lists_that_the_readme_says(tmp_path, capsys):
    overrides = ["queries=default", "source=commons", "sources.contact=you@example.org"]
    assert main(["--stage", "queries", *overrides, f"out_dir={tmp_path}"]) == 0
    table = read_table(DatasetPaths(tmp_path).table("queries"), QUERIES)
    found = Counter(map(query_source, table.column("origin").to_pylist()))
    assert len(set(table.column("folded").to_pylist())) == len(table) == sum(found.values())
    page = (Path(data_tools.__file__).parent / "README.md").read_text()
    _, rows = page.split("| `queries=default` | kept |")
    cells = [line.split("|")[1:3] for line in rows.split("\n\n")[0].splitlines()[2:]]
    said = {
        name.split(",")[0].strip(): int(kept.split()[0].replace(",", "")) for name, kept in cells
    }
    assert said == {
        "WordNet": found["wordnet"],
        "unigrams": found["unigrams"],
        "bigrams": found["bigrams"],
        "page titles": found["titles"],
        "composed phrases": found["composed"],
        "all": 500_000,
    }
    # the published sizes are printed beside them
    told = capsys.readouterr().out
    assert all(size in told for size in ("86,654", "251,465", "100,646", "500,000"))


def test_a_list_that_the_total_cuts_is_shown_to_be_cut(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("cat\ndog\ncow\n")
    job = DatasetJob(out_dir=str(tmp_path / "out"))
    job.queries.path, job.queries.total = str(tmp_path / "mine.txt"), 2
    counts, rows, _ = rows_of(job)
    assert [row["query"] for row in rows] == ["cat", "dog"]
    assert counts == {"lines": 3, "duplicates": 0, "queries": 2}
    assert "file" in capsys.readouterr().out
