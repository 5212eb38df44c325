"""Pages of answers that are kept for the next run."""

import time

from data_tools.search.pages import MAX_AGE_S, PageStore, page_key


def test_pages_are_kept_until_they_are_old(tmp_path, monkeypatch):
    path = tmp_path / "x.pages"
    store = PageStore(path)
    key = page_key("http://x", {"q": "cat", "page": "1"})
    assert key == page_key("http://x", {"page": "1", "q": "cat"})
    assert key != page_key("http://x", {"q": "cat", "page": "2"})
    assert store.get(key) is None
    store.put(key, {"results": [1]})
    assert store.get(key) == PageStore(path).get(key) == {"results": [1]}
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    again = PageStore(path)
    again.put("other", [2])
    for store in (again, PageStore(path)):
        assert (store.get(key), store.get("other")) == ({"results": [1]}, [2])
    later = time.time() + MAX_AGE_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert PageStore(path).get(key) is None


def test_the_store_of_pages_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.search.pages.MAX_BYTES", 5000)
    store = PageStore(tmp_path / "x.pages")
    for number in range(200):
        store.put(str(number), "x" * 100)
        assert store.get(str(number)) == "x" * 100
        assert number < 30 or store.get(str(number - 20)) == "x" * 100
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    assert store.get("0") is None and PageStore(tmp_path / "x.pages").get("0") is None
    assert PageStore(tmp_path / "x.pages").get("199") == "x" * 100
