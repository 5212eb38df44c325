from __future__ import annotations

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.dataset.manifest import INDEX, file_sha256
from data_tools.dataset.shard_writer import ShardWriter, tar_header

NAMES = st.text("0123456789abcdef._-", min_size=1, max_size=100)


@given(NAMES, st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("x", 8**11), ("é", 1)])
def test_what_a_header_cannot_hold_is_refused(name, size):
    with pytest.raises(ValueError):
        tar_header(name, size)


@given(st.lists(st.tuples(st.binary(max_size=2000), st.text(max_size=600)), max_size=12))
def test_a_shard_is_what_tarfile_would_have_written(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("shard")
    writer, expected = ShardWriter(folder, 3), io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (image, caption) in enumerate(samples):
            uid = f"{number:032x}"
            text = caption.encode(errors="replace").decode()
            writer.add(uid, image, text, {"b": caption, "a": number})
            json_text = writer_json(caption, number)
            for name, content in (("jpg", image), ("json", json_text), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{uid}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    entry = writer.close()
    tar = folder / "000003.tar"
    assert tar.read_bytes() == expected.getvalue()
    assert (entry.num_bytes, entry.sha256) == (tar.stat().st_size, file_sha256(tar))
    assert pq.read_schema(folder / "000003.index.parquet").equals(INDEX)
    assert {file.name for file in folder.iterdir()} == {"000003.tar", "000003.index.parquet"}


def writer_json(caption: str, number: int) -> bytes:
    found: str = json.dumps({"a": number, "b": caption}, ensure_ascii=False, separators=(",", ":"))
    return found.encode()


def test_what_is_discarded_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.add("0" * 32, b"x" * 5_000_000, "caption", {})
    assert list(tmp_path.iterdir())
    writer.discard()
    assert not list(tmp_path.iterdir())
