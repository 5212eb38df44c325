import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.search.commons_text import commons_text, is_language_label

HIDDEN = '<div style="display: none;">{}</div>'


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<b>Hay Wain</b>" + HIDDEN.format('label QS:Lnl,"Hooiwagen"'), "Hay Wain"),
        ('Hay Wain label QS:Len,"Hay Wain" title QS:P1476,en:"The Hay Wain"', "Hay Wain"),
        ('Hay Waintitle QS:P1476,en:"Hay Wain"label QS:Lde,"Der Heuwagen"', "Hay Wain"),
        ('Hay Wain "label QS:Len,"Hay Wain ""', "Hay Wain"),
        ('"Hay Wain"label QS:Len,"Hay Wain"', '"Hay Wain"'),
        ('Hay Wain title QS:P1476,en:"The "Hay" Wain"', "Hay Wain"),
        ("J. Constable creator QS:P170,Q159297", "J. Constable"),
        ("circa 1821date QS:P571,+1821-00-00T00:00:00Z/9,P1480,Q5727902", "circa 1821"),
        ("1820 date QS:P571,+1820-00-00T00:00:00Z/9, varnished later", "1820 , varnished later"),
        ("oil medium QS:P186,Q296955;P186,Q12321255,P518,Q861259 on canvas", "oil on canvas"),
        ("130 cm dimensions QS:P2048,130U174728", "130 cm"),
        ("about QS: a card game", "about QS: a card game"),
        ('label QS:Len,"Hay', ""),
        ('<span class="language fr" title="French"><b>Français :</b></span> Un pont', "Un pont"),
        (
            '<div style="font-weight:bold">Nederlands: </div>Een brug',
            "Een brug",
        ),
        ("<b>English:</b> A bridge<br><b>German:</b> Eine Brücke", "A bridge Eine Brücke"),
        ("Russian: Мост", "Мост"),
        ("日本語：橋", "橋"),
        ("Chinese (Hong Kong): 橋", "橋"),
        ("Note: a bridge", "Note: a bridge"),
        ("The Dutch: a bridge", "The Dutch: a bridge"),
        ("<i>English</i> garden", "English garden"),
        ("{{en|1=A bridge}} {{own}}", "A bridge"),
        ("{{Title|{{de|Brücke}}}}{{PD-old}} 1900", "1900"),
        ("{{not closed", "{{not closed"),
        ("   ", ""),
    ],
)
def test_what_machines_wrote_is_left_out(html, text):
    assert commons_text(html) == text


def test_labels_are_names_of_languages():
    for label in ("English:", "português do Brasil:", "Українська :", "中文（台灣）：", "DEUTSCH:"):
        assert is_language_label(label)
    for text in ("English", "English: a", ":", "", "Anglais", "(English):"):
        assert not is_language_label(text)


PARTS = st.sampled_from(
    [
        "label",
        " ",
        "title",
        " QS:",
        "Len",
        ",",
        '"',
        "{{",
        "}}",
        "|",
        "en",
        ":",
        "Q1",
        "<b>",
        "</b>",
    ]
    + ["English:", "<p hidden>", "</p>", "<![", "&#", ";", "x"]
)


@given(st.lists(PARTS, max_size=40).map("".join))
def test_no_text_is_an_error(html):
    text = commons_text(html)
    assert text == " ".join(text.split())


@pytest.mark.parametrize(
    "part",
    ['label QS:Len,"', 'label QS:P1,"a"b', "x QS:P1 ", "{{en|", "<b>English", " : "],
)
def test_hostile_texts_take_no_long_time(part):
    commons_text(part * 30_000)
