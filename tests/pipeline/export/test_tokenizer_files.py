"""The rebuilt vocabulary is the published one, byte by byte."""

from __future__ import annotations

import hashlib
import json

import pytest

from pipeline.data import Tokenizer
from pipeline.export import ExportError, tokenizer_files


def test_files_are_openais(tmp_path):
    tokenizer_files.write_tokenizer_files(tmp_path, 77)
    # Of openai/clip-vit-base-patch32 on the Hugging Face Hub.
    for name, digest in {
        "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
        "vocab.json": "5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363",
    }.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 77


def test_transformers_reads_texts_as_this_project_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer_files.write_tokenizer_files(tmp_path, 30)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = [
        "Hello world",
        "日本語 สวัสดี",
        "\U0001f469\u200d\U0001f680 x",
        "it's 10:30",
        "w" * 400,
    ]
    for text, row in zip(texts, Tokenizer(30)(texts), strict=True):
        end = row.tolist().index(49407)
        assert theirs(text, truncation=True)["input_ids"] == row[: end + 1].tolist()


def test_another_vocabulary_is_refused(tmp_path, monkeypatch):
    vocab, merges = {"a": 0}, [("a", "b")]
    monkeypatch.setattr(tokenizer_files, "vocabulary", lambda: (vocab, merges))
    with pytest.raises(ExportError, match="does not hold CLIP's published vocabulary"):
        tokenizer_files.write_tokenizer_files(tmp_path, 77)
    assert not (tmp_path / "merges.txt").exists()
