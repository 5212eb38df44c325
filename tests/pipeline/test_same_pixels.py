"""The same picture has the same pixels in training, in evaluation and in `pipeline.score`, whatever
its file; the table in pipeline/data/README.md says which."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset.manifest import load_manifest
from pipeline.config import DataConfig
from pipeline.data import EvalSetError, Tokenizer, load_eval_set
from pipeline.data.faults import SampleError
from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.sample import RawSample, SampleDecoder
from pipeline.data.samples.transforms import eval_transform
from pipeline.score.pairs import score_shards
from pipeline.score.scorer import Scorer
from tests.pipeline.data.eval_sets import write_classification
from tests.pipeline.data.images import synthetic_photo
from tests.pipeline.data.made_shards import Sample, write_shards
from tests.pipeline.data.picture_kinds import KINDS, REFUSED, ROWS, TOLERANCE

README = Path(__file__).parents[2] / "pipeline/data/README.md"
SIZE = 48
NO_CROP = DataConfig(crop_scale_min=1.0)


def trained_on(data: bytes, size: int = SIZE) -> np.ndarray:
    """Pixels of a square picture that the crop leaves whole."""
    out = np.empty((3, size, size), np.uint8)
    decoder = SampleDecoder(NO_CROP, image_size=size, seed=0)
    decoder.decode(RawSample("key", "shard", 0, data, b"a caption", b""), 0, out)
    return out


def evaluated(folder: Path, pictures: list[bytes], size: int = SIZE) -> list[np.ndarray]:
    write_classification(folder, pictures, [0] * len(pictures), ["thing"])
    ((images, _, _),) = load_eval_set(folder, size).batches(len(pictures))
    return list(images.numpy())


def scored(folder: Path, pictures: list[bytes], size: int = SIZE) -> tuple[list[np.ndarray], int]:
    """What the model of `pipeline.score` is given, and how many were left out."""
    samples = [Sample(f"s{i:04d}", data, "a caption") for i, data in enumerate(pictures)]
    manifest = load_manifest(write_shards(folder, samples, len(samples)))
    seen: list[np.ndarray] = []

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        seen.extend(images.numpy())
        return torch.ones(len(images), 2)

    scorer = Scorer(
        "seen",
        size,
        Tokenizer(8),
        encode_image,
        lambda t: torch.ones(len(t), 2),
        torch.device("cpu"),
    )
    counts = score_shards(manifest, scorer, manifest.shards, batch_size=7, num_threads=2)
    return seen, counts["bad"]


def within(found: np.ndarray, expected: np.ndarray, levels: int) -> bool:
    return found.shape == expected.shape and (
        np.abs(found.astype(int) - expected.astype(int)).max() <= levels
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_every_kind_is_what_it_stands_for(name):
    data, expected = KINDS[name](synthetic_photo(7, 52, 36))
    assert within(decode_rgb(data), expected, TOLERANCE.get(name, 0))


def test_the_documented_table_has_a_picture_of_every_row():
    table = README.read_text().split("| picture |")[1].split("\n\n")[0]
    rows = re.findall(r"^  \| (.+?) \| .+ \|$", table, re.MULTILINE)
    assert rows[:-1] == list(ROWS)
    assert rows[-1].startswith("float and 32-bit TIFF, SVG, what is cut short")


def test_all_kinds_in_training_evaluation_and_score(tmp_path):
    photo = synthetic_photo(8, SIZE, SIZE)
    pictures = [build(photo)[0] for build in KINDS.values()]
    of_evaluation = evaluated(tmp_path / "set", pictures)
    of_score, bad = scored(tmp_path / "data", pictures)
    assert bad == 0 and len(of_score) == len(pictures)
    for name, data, second, third in zip(KINDS, pictures, of_evaluation, of_score, strict=True):
        first = trained_on(data)
        assert np.array_equal(first, second), name
        assert np.array_equal(first, third), name


@given(
    name=st.sampled_from(sorted(KINDS)),
    size=st.integers(8, 70),
    seed=st.integers(0, 2**32 - 1),
    flat=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_square_picture_is_one_in_training_and_evaluation(name, size, seed, flat):
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    if flat:
        photo[:] = photo[0, 0]
    data, expected = KINDS[name](photo)
    pixels = eval_transform(data, size)
    assert np.array_equal(trained_on(data, size), pixels)
    assert within(pixels.transpose(1, 2, 0), expected, TOLERANCE.get(name, 0))


@given(
    name=st.sampled_from(sorted(KINDS)),
    width=st.integers(4, 70),
    height=st.integers(4, 70),
    image_size=st.integers(4, 60),
)
@settings(max_examples=60, deadline=None)
def test_evaluation_resizes_what_training_decodes(name, width, height, image_size):
    """A file of any kind and its pixels in a plain PNG are one picture."""
    data, _ = KINDS[name](np.resize(synthetic_photo(9, 70, 70), (height, width, 3)))
    plain, _ = KINDS["png"](decode_rgb(data))
    assert np.array_equal(eval_transform(data, image_size), eval_transform(plain, image_size))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_everywhere(name, tmp_path):
    bad = REFUSED[name](synthetic_photo(7, SIZE, SIZE))
    good = KINDS["png"](synthetic_photo(8, SIZE, SIZE))[0]
    with pytest.raises(SampleError):
        trained_on(bad)
    with pytest.raises(EvalSetError, match="s0000001 in .*0.tar cannot be decoded .*8-bit PNG"):
        evaluated(tmp_path / "set", [good, bad])
    assert scored(tmp_path / "data", [good, bad])[1] == 1
