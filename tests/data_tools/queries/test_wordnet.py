import pytest

from data_tools.config.queries import Lemmas
from data_tools.queries.wordnet import Noun, WordNet
from data_tools.tables.schema import DataError
from tests.data_tools.queries import tiny_wordnet


@pytest.fixture
def folder(tmp_path):
    return tiny_wordnet.make(tmp_path / "dict")


def test_heads_are_the_first_lemma_of_each_synset(folder):
    heads = list(WordNet(folder).queries(Lemmas.heads))
    assert heads[:3] == [
        ("entity", "wordnet:n00000100"),
        ("animal", "wordnet:n00000200"),
        ("dog", "wordnet:n00000300"),
    ]
    # in the order noun, verb, adjective, adverb; the marker of the adjective's place is gone
    assert [lemma for lemma, _ in heads[-4:]] == ["breathe", "red", "galore", "DOG"]
    assert len(heads) == 14


def test_all_lemmas_with_spaces_for_underscores(folder):
    lemmas = dict(WordNet(folder).queries(Lemmas.all))
    assert lemmas["domestic dog"] == "wordnet:n00000300"
    assert lemmas["respire"] == "wordnet:v00000100"
    assert "fire engine" in lemmas


def test_nouns_are_of_one_category_in_their_first_sense(folder):
    wordnet = WordNet(folder)
    # the bird "crane" is the second sense; Canis stands below a genus
    assert list(wordnet.nouns("animal")) == [Noun("animal", "entity"), Noun("dog", "animal")]
    assert list(wordnet.nouns("artifact")) == [
        Noun("crane", "machine"),
        Noun("machine", "entity"),
        Noun("fire engine", "machine"),
    ]


def test_what_there_is_one_of_is_no_noun_for_phrases(folder):
    assert list(WordNet(folder).nouns("location")) == []
    assert list(WordNet(folder).nouns("tops")) == [Noun("entity", None)]


def test_glosses_hold_definitions_and_examples(folder):
    assert 'a tame animal; "the dog barked all night"' in list(WordNet(folder).glosses())


def test_missing_files_are_named_with_the_fix(folder):
    (folder / "data.verb").unlink()
    (folder / "index.adj").unlink()
    with pytest.raises(DataError, match=r"lacks index.adj, data.verb.*wordnet-base"):
        WordNet(folder)


@pytest.mark.parametrize(
    "line",
    [
        "00000300 05 n zz dog 0 000 | x",
        "00000300 05 n 03 dog 0 000 | x",
        "00000300 05 n 01 dog 0 002 @ 00000200 n 0000 | x",
        "not WordNet at all",
        "<html>",
    ],
)
def test_a_malformed_line_is_told_with_its_number(folder, line):
    (folder / "data.noun").write_text(tiny_wordnet.LICENCE + line + "\n")
    with pytest.raises(DataError, match="data.noun: line 2 is not of WordNet's format"):
        WordNet(folder)


def test_a_malformed_index_is_told(folder):
    (folder / "index.noun").write_text("dog n many\n")
    with pytest.raises(DataError, match="index.noun: line 1 is not of WordNet's format"):
        list(WordNet(folder).nouns("animal"))


def test_not_utf_8_is_told(folder):
    (folder / "data.adv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="data.adv: line 1 is not UTF-8"):
        WordNet(folder)


def test_a_hypernym_of_another_version_is_told(folder):
    text = (folder / "data.noun").read_text().replace("@ 00000200", "@ 00000201")
    (folder / "data.noun").write_text(text)
    with pytest.raises(DataError, match="hypernym n00000201.*not of one version"):
        list(WordNet(folder).nouns("animal"))


def test_a_folder_without_synsets_is_refused(folder):
    for file in folder.iterdir():
        file.write_text("")
    with pytest.raises(DataError, match="hold no synset"):
        WordNet(folder)
