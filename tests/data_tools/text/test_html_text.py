"""What a browser shows of HTML that strangers wrote."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.curate.captions import repaired
from data_tools.text.html_text import html_to_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('a <span style="display:none">b</span> c', "a c"),
        ("a <span style='color:red; DISPLAY : NONE !important'>b</span>c", "a c"),
        ('a <i style="visibility:hidden">b</i>', "a"),
        ('a <i style="display:none;display:inline">b</i>', "a b"),
        ('a <i style="/*display:none*/color:red">b</i>', "a b"),
        ('a <i style="x-display:none">b</i>', "a b"),
        ('<p style="display&#58;none">a</p>b', "b"),
        ('<p class="note HIDDEN">a</p>b', "b"),
        ('<p class="hiddenish">a</p>b', "a b"),
        ("<p hidden>a</p>b", "b"),
        ("<div hidden>a<div>b</div>c<br>d</div>e", "e"),
        ("<div hidden>a</b></p>b</div>c", "c"),
        ("<div hidden><b>a</div>b</b>", "b"),
        ("<ul><li hidden>a<li>b</ul>c", "b c"),
        ("<table><tr><th>a<td hidden>b<td>c<tr><td>d</table>e", "a c d e"),
        ("<p hidden>a<p>b", "b"),
        ("<img hidden>a<input hidden>b", "a b"),
        ("<style>a</style><script>if (a < b) '</p>'</script>c<textarea>d</textarea>", "c d"),
        ("<SCRIPT>a</scripts></Script >b", "b"),
        ("<template>a</template><title>b</title><video>c</video>d", "d"),
        ("snow<wbr>ball, <u>i</u>ce", "snowball, ice"),
        ("a<!-- b -- > c -->d<!-->e<!--->f<!x>g<?y>h</>i</ >j", "adefghij"),
        ("a<![CDATA[b]]>c", "ac"),
        ("a < b, 3<4, I <3 it, <>", "a < b, 3<4, I <3 it, <>"),
        ("<a href='>'>a</a><a title=it's b=\"<i>\">c</a>", "ac"),
        ("<a/b/c=d>e</a\n>f", "ef"),
        ("a <b title='c>d", "a"),
        ("a <!-- b", "a"),
        ("a <script>b", "a"),
        ("a <b", "a"),
        ("a </b", "a"),
        ("&lt;b&gt; &amp;amp; &#39; &copy", "<b> &amp; ' ©"),
        (f"a&#{'9' * 5000};b &#{'9' * 5000} c", "a\ufffdb \ufffd c"),
    ],
)
def test_visible_text(html, text):
    assert html_to_text(html) == text


def test_a_label_is_a_whole_element():
    assert html_to_text("<b>x</b> y <p><i>x</i></p> xx <b>x y</b>", lambda text: text == "x") == (
        "y xx x y"
    )


TAGS = ["<p>", "</p>", "<b hidden>", "</b>", "<!--", "-->", "<![", "<a b='", '"', ">", "<", "&#x;"]


@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(max_size=5)), max_size=30).map("".join))
def test_no_html_is_an_error(html):
    text = html_to_text(html)
    assert text == " ".join(text.split())
    if not re.search("[<>&]", html):
        assert text == " ".join(html.split())


@pytest.mark.parametrize(
    "part",
    ["<!--", "<![", "</", "<a ", "<a b='", "&#", "<", "<script>", "<p>", "<b hidden>", "<b></p>"]
    + ["<i style='/*", "</a ", "<a =", "<x y=z ", "&am", "<li>"],
)
def test_hostile_html_takes_no_long_time(part):
    html_to_text(part * 30_000)


def test_a_number_of_thousands_of_digits_ends_no_stage():
    assert repaired(f"a&#{'7' * 5000};b") == "a\ufffdb"
