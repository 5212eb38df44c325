import bz2
import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from data_tools.queries import files
from data_tools.queries.articles import Article, read_articles
from data_tools.tables.schema import DataError

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">
  <siteinfo><sitename>Wikipedia</sitename></siteinfo>
  <page><title>Red panda</title><ns>0</ns><revision><text xml:space="preserve">{{Taxobox|name=x}}
[[File:Panda.jpg|thumb|A thumbnail]]The '''red panda''' is a [[mammal|small mammal]].
{| class="x"
| a cell
|}
&lt;ref&gt;Source&lt;/ref&gt;
[[Category:Mammals]]</text></revision></page>
  <page><title>Panda, red</title><ns>0</ns><redirect title="Red panda"/>
    <revision><text>#REDIRECT [[Red panda]]</text></revision></page>
  <page><title>Talk:Red panda</title><ns>1</ns><revision><text>Hello</text></revision></page>
  <page><title>Empty</title><ns>0</ns><revision><text/></revision></page>
  <page><title>Mercury (planet)</title><ns>0</ns>
    <revision><text>A hot planet.</text></revision></page>
</mediawiki>
"""


def dump(tmp_path, text=DUMP):
    path = tmp_path / "enwiki-pages-articles.xml.bz2"
    path.write_bytes(bz2.compress(text.encode()))
    return path


def test_articles_of_a_dump_without_mark_up(tmp_path):
    panda, mercury = read_articles(dump(tmp_path))
    assert panda.title == "Red panda"
    assert panda.text.split() == "The red panda is a small mammal.".split()
    assert mercury == Article("Mercury (planet)", "A hot planet.")


def test_number_of_processes_changes_nothing(tmp_path):
    pages = "".join(
        f"<page><title>{n}</title><text>Page {n} is ''{n % 7}''.</text></page>" for n in range(200)
    )
    path = tmp_path / "many.xml"
    path.write_text(f"<mediawiki>{pages}</mediawiki>")
    articles = list(read_articles(path, num_processes=2))
    assert articles == list(read_articles(path))
    assert articles[199] == Article("199", "Page 199 is 3.")


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    pages = "".join(f"<page><title>{n}</title><text>x</text></page>" for n in range(2000))
    (tmp_path / "many.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    script = tmp_path / "reader.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from pathlib import Path\n"
        "from data_tools.queries.articles import read_articles\n"
        "if __name__ == '__main__':\n"
        "    articles = read_articles(Path('many.xml'), 2); next(articles)\n"
        "    workers = multiprocessing.active_children()\n"
        "    print(*[worker.pid for worker in workers], flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as reader:
        workers = [int(pid) for pid in reader.stdout.readline().split()]
        reader.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while alive := [pid for pid in workers if is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_dump_that_is_cut_off_is_told(tmp_path):
    path = dump(tmp_path)
    path.write_bytes(bz2.compress(DUMP[:-30].encode()))
    with pytest.raises(DataError, match="no whole XML dump"):
        list(read_articles(path))
    path.write_bytes(bz2.compress(DUMP.encode())[:-20])
    with pytest.raises(DataError, match="cut off or not bz2"):
        list(read_articles(path))
    path.write_bytes(b"no bz2 at all")
    with pytest.raises(DataError, match="enwiki-pages-articles.xml.bz2"):
        list(read_articles(path))


def test_a_bomb_of_entities_is_refused(tmp_path):
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    text = f'<!DOCTYPE m [<!ENTITY e0 "bomb">{entities}]><m><page>&e12;</page></m>'
    path = tmp_path / "bomb.xml"
    path.write_text(text)
    with pytest.raises(DataError, match="no whole XML dump"):
        list(read_articles(path))


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with pytest.raises(DataError, match=r"pip install 'clip-pretrain\[queries\]'"):
        list(read_articles(dump(tmp_path)))


@pytest.mark.parametrize("name", ["wiki_00", "wiki_00.gz", "all.jsonl"])
def test_output_of_wikiextractor(tmp_path, name):
    lines = [{"id": "1", "title": "Cat", "text": "A cat.\nIt purrs."}, {"title": "Dog", "text": ""}]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_articles(path)) == [Article("Cat", "A cat.\nIt purrs."), Article("Dog", "")]


@pytest.mark.parametrize("line", ["<doc id=1>", '{"title": "x"}', "[1]", '"x"', "\xff"])
def test_what_wikiextractor_did_not_write_is_told(tmp_path, line):
    path = tmp_path / "wiki_00"
    path.write_bytes(b'{"title": "Cat", "text": ""}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match="line 2 is no JSON object.*--json"):
        list(read_articles(path))


def test_half_a_surrogate_pair_in_a_title_is_left_out(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text('{"title": "Cat\\ud800", "text": ""}\n')
    assert [article.title for article in read_articles(path)] == ["Cat"]


def test_plain_text_line_by_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfred car\r\n\nblue car")
    assert [article.text for article in read_articles(path)] == ["red car", "", "blue car"]


def test_text_that_is_not_utf_8_is_told_with_its_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"red car\ncaf\xe9\n")
    with pytest.raises(DataError, match="text.txt: line 2 is not UTF-8"):
        list(read_articles(path))


def test_a_text_without_line_breaks_comes_in_pieces_at_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_PIECE_BYTES", 16)
    path = tmp_path / "text.txt"
    text = "caf\u00e9 au lait " * 50
    path.write_text(text)
    pieces = [article.text for article in read_articles(path)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 32
    assert set(" ".join(pieces).split()) == {"caf\u00e9", "au", "lait"}


def test_a_text_without_any_space_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_PIECE_BYTES", 16)
    monkeypatch.setattr(files, "LONGEST_WORD_BYTES", 64)
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="without a space"):
        list(read_articles(path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="gone.txt: No such file"):
        list(read_articles(tmp_path / "gone.txt"))
