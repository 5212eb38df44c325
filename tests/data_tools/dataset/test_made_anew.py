"""A manifest that holds bad samples is made again without them, where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools import audit
from data_tools.dataset.manifest import load_manifest
from tests.data_tools.crawl import pictures
from tests.data_tools.dataset.test_foreign import good, sample, write_tar


def audited(target: Path, *words: str) -> int:
    return audit.main([str(target), "processes=1", *words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tars with a manifest that was made without looking at the pixels: one image has none."""
    image = pictures.png()
    cut = sample("b", png=image[:40] + bytes(len(image) - 40), txt=b"an owl")
    for number in range(2):
        members = [*good(f"a{number}"), *(cut if number else []), *good(f"c{number}")]
        write_tar(tmp_path / f"{number}.tar", members)
    assert audited(tmp_path, "decode=0") == 0
    assert load_manifest(tmp_path / "manifest.json").num_samples == 5
    return tmp_path


@pytest.mark.parametrize("named", ["", "manifest.json"])
def test_bad_samples_leave_a_manifest_that_held_them(folder, named, capsys):
    assert audited(folder) == 1
    assert load_manifest(folder / "manifest.json").num_samples == 5
    capsys.readouterr()
    assert audited(folder / named, "--leave-out-bad") == 0
    told = capsys.readouterr().err
    assert f"note: {folder}/manifest.json has bad samples: made anew" in told
    assert "left out: 1.tar: b: the image does not decode" in told
    assert load_manifest(folder / "manifest.json").num_samples == 4
    assert audited(folder) == 0
    assert audited(folder, "--leave-out-bad") == 0
    assert "made anew" not in capsys.readouterr().err


def test_samples_beyond_those_that_an_audit_decodes_are_left_out_too(folder):
    assert audited(folder, "decode=1") == 0
    assert audited(folder, "decode=1", "--leave-out-bad") == 0
    assert load_manifest(folder / "manifest.json").num_samples == 4


def test_a_folder_that_changed_is_not_taken_as_it_is(folder):
    write_tar(folder / "0.tar", good("another"))
    before = (folder / "manifest.json").read_bytes()
    assert audited(folder, "--leave-out-bad") == 1
    assert (folder / "manifest.json").read_bytes() == before
