"""Runs that cannot learn say why, and one that can says nothing: real ranks on shards made so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.runs import run
from tests.pipeline.data.made_shards import Sample, jpeg, make_samples, write_shards

WORDS = {
    "resting": "which is ln(16)",
    "image": "the image features have collapsed",
    "text": "the text features have collapsed",
    "captions": "of the batch's captions are there more than once",
    "epoch": "an epoch has only",
}


def said_by_a_run_on(folder: Path, samples: list[Sample]) -> set[str]:
    manifest = write_shards(folder / "data", samples, 40)
    ended = run(
        "experiment=tiny",
        f"data.manifest={manifest}",
        f"run_dir={folder / 'run'}",
        "train.steps=40",
        "checkpoint.every_steps=100",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = {kind: ended.stderr.count(words) for kind, words in WORDS.items()}
    assert set(counts.values()) <= {0, 1}, counts
    return {kind for kind, count in counts.items() if count}


@pytest.mark.slow
def test_one_picture_for_all(tmp_path):
    samples = [replace(sample, image=jpeg(0)) for sample in make_samples(400)]
    # with nothing to tell apart, the other tower follows into one direction
    assert said_by_a_run_on(tmp_path, samples) == {"image", "text", "resting"}


@pytest.mark.slow
def test_one_caption_for_all(tmp_path):
    samples = [replace(sample, caption="a photo") for sample in make_samples(100)]
    assert said_by_a_run_on(tmp_path, samples) == set(WORDS)


@pytest.mark.slow
def test_different_pictures_with_their_captions(tmp_path):
    words = "red green blue white black round square old new tall small bright".split()
    samples = [
        replace(sample, caption=" ".join(words[number * step % 12] for step in (1, 3, 5)))
        for number, sample in enumerate(make_samples(400, lambda number: jpeg(number % 12)))
    ]
    assert said_by_a_run_on(tmp_path, samples) <= {"captions"}
