import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.config.queries import TitlesConfig
from data_tools.queries.counting import SpilledCounts
from data_tools.queries.titles import readable, text_titles, viewed_titles
from data_tools.tables.schema import DataError


def titles_of(folder, *files, **settings):
    config = TitlesConfig(paths=[str(file) for file in files], **settings)
    return list(viewed_titles(config, folder / "counts", 100, 64))


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Red_panda", "Red panda"),
        ("Mercury (planet)", "Mercury"),
        ("(What's the Story) Morning Glory?", "(What's the Story) Morning Glory?"),
        ("(500)", "(500)"),
        (" Café\u00a0 noir ", "Café noir"),
    ],
)
def test_names_as_they_are_written_in_a_sentence(title, name):
    assert readable(title) == name


def test_most_viewed_first_and_summed_over_files(tmp_path):
    (tmp_path / "a.txt").write_text("Cat\t100\nRed_panda\t69\nDog\t100\n\n")
    (tmp_path / "b.csv").write_text('views,title\n1,Red panda\n80,"Paris, Texas"\n5,Rare\n')
    found = titles_of(tmp_path, tmp_path / "a.txt", tmp_path / "b.csv")
    assert found == [
        ("Cat", "titles:100"),
        ("Dog", "titles:100"),
        ("Paris, Texas", "titles:80"),
        ("Red panda", "titles:70"),
    ]


def test_parquet_and_tsv_with_their_own_column_names(tmp_path):
    table = pa.table({"page": ["Cat", None], "n": [80, 90]})
    pq.write_table(table, tmp_path / "views.parquet")
    (tmp_path / "views.tsv").write_text('page\tn\n"Heroes" (album)\t75\n')
    found = titles_of(tmp_path, tmp_path / "views.*", title_column="page", views_column="n")
    assert ("Cat", "titles:80") in found
    assert ('"Heroes"', "titles:75") in found


def test_pageviews_of_one_project_without_other_name_spaces(tmp_path):
    path = tmp_path / "pageviews-20220101-000000.gz"
    text = "de Katze 900 0\nen Cat 60 0\nen Talk:Cat 500 0\nen.m Cat 700 0\nen Cat_(unix) 20 0\n"
    path.write_bytes(gzip.compress(text.encode()))
    assert titles_of(tmp_path, path) == [("Cat", "titles:80")]


def test_missing_columns_name_those_present(tmp_path):
    (tmp_path / "views.csv").write_text("name,count\nCat,1\n")
    with pytest.raises(DataError, match="no column title, views; it has name, count: set queries"):
        titles_of(tmp_path, tmp_path / "views.csv")
    pq.write_table(pa.table({"title": ["Cat"]}), tmp_path / "views.parquet")
    with pytest.raises(DataError, match="no column views; it has title"):
        titles_of(tmp_path, tmp_path / "views.parquet")


@pytest.mark.parametrize("line", ["Cat", "Cat\tmany", "Cat\t-1", "Cat 100"])
def test_a_line_without_views_is_told(tmp_path, line):
    (tmp_path / "views.txt").write_text(f"Dog\t100\n{line}\n")
    with pytest.raises(DataError, match="views.txt: line 2: .* is no number of views"):
        titles_of(tmp_path, tmp_path / "views.txt")


def test_files_that_are_not_what_they_are_called(tmp_path):
    (tmp_path / "views.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a readable parquet table"):
        titles_of(tmp_path, tmp_path / "views.parquet")
    (tmp_path / "views.txt").write_bytes(b"Caf\xe9\t100\n")
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        titles_of(tmp_path, tmp_path / "views.txt")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="no column title, views; it has none"):
        titles_of(tmp_path, tmp_path / "empty.csv")
    (tmp_path / "broken.csv").write_text("title,views\nParis, Texas,80\n")
    with pytest.raises(DataError, match="line 2 has 3 fields, the header 2"):
        titles_of(tmp_path, tmp_path / "broken.csv")


def test_titles_of_the_text_longest_article_first(tmp_path):
    titles = SpilledCounts(tmp_path, "titles", 1)
    for title, length in [("Stub", 10), ("Mercury (planet)", 5000), ("Cat", 400)]:
        titles.add(title, length)
    found = list(text_titles(titles, tmp_path, 64))
    assert found == [("Mercury", "titles:text"), ("Cat", "titles:text"), ("Stub", "titles:text")]
