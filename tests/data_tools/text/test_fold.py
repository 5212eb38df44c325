import pytest

from data_tools.text.fold import fold, has_word


@pytest.mark.parametrize("query", ["猫", "7", "½", "हिन्दी", "a"])
def test_letters_and_digits_of_every_script_count(query):
    assert has_word(query)


@pytest.mark.parametrize("query", ["", "…", "—", "🙂", "+-"])
def test_punctuation_and_symbols_do_not(query):
    assert not has_word(query)


@pytest.mark.parametrize(
    ("text", "folded"), [("İ", "i̇"), ("ẞ", "ss"), ("ﬁsh", "fish"), (" a\u3000b ", "a b")]
)
def test_folding(text, folded):
    assert fold(text) == folded
    assert fold(folded) == folded
