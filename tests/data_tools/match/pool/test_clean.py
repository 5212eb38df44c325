"""The uids of a batch are those of its rows one by one."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data_tools.match.pool import with_uids
from data_tools.tables.schema import CANONICAL_URL, _made_canonical, canonical_url, make_uid

URLS = st.one_of(
    st.text("htps:/.?#%@[]&=ab XY\u00e9-_~'\n", max_size=30).map(lambda rest: "http://" + rest),
    st.from_regex(CANONICAL_URL, fullmatch=True),
    st.builds(
        lambda scheme, host, path: f"{scheme}://{host}{path}",
        st.sampled_from(["http", "https", "HTTP"]),
        st.sampled_from(
            ["a.org", "A.org", "a.org:80", "a.org:443", "u@a.org", "\u732b.jp", "[::1]"]
        ),
        st.text("/ab?#%20;=+,'(){}|", max_size=12),
    ),
)


def made_or_none(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return None


@given(URLS)
def test_a_url_taken_for_canonical_is(url):
    assert made_or_none(canonical_url, url) == made_or_none(_made_canonical, url)


@given(st.lists(st.tuples(URLS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1))))
def test_uids_of_a_batch_are_those_of_its_rows(rows):
    columns = {
        name: pa.array(values, pa.string())
        for name, values in (("url", [u for u, _ in rows]), ("caption", [c for _, c in rows]))
    }
    result = with_uids(columns)
    wanted = [made_or_none(make_uid, url, caption) for url, caption in rows]
    assert result.columns["uid"].to_pylist() == [uid for uid in wanted if uid is not None]
    assert result.counts.unusable_urls == wanted.count(None)
