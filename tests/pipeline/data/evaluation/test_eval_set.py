"""Evaluation sets: every sample once over the ranks, and nothing scored that is not whole."""

from __future__ import annotations

import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch

from pipeline.data import EvalSetError, load_eval_set
from pipeline.data.samples.transforms import eval_transform
from tests.pipeline.data.eval_sets import write_classification, write_retrieval, write_tar
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.made_shards import jpeg

NUM = 23
IMAGES = [jpeg(number) for number in range(NUM)]
LABELS = [number % 3 for number in range(NUM)]
NAMES = ["cat", "dog", "crème brûlée"]


@pytest.fixture()
def folder(tmp_path):
    return write_classification(tmp_path / "pets", IMAGES, LABELS, NAMES)


def test_fields(folder):
    eval_set = load_eval_set(folder, 16)
    assert (eval_set.name, eval_set.kind, eval_set.num_samples) == ("pets", "classification", NUM)
    assert eval_set.classnames == NAMES and eval_set.templates == ["a photo of a {c}."]


@pytest.mark.parametrize("world_size, batch_size", [(1, 5), (2, 4), (3, 100), (5, 1)])
def test_every_sample_once_over_the_ranks(folder, world_size, batch_size):
    seen = {}
    for rank in range(world_size):
        eval_set = load_eval_set(folder, 16, rank, world_size)
        assert eval_set.num_samples == NUM
        for images, labels, indices in eval_set.batches(batch_size):
            assert images.dtype == torch.uint8 and images.shape == (len(indices), 3, 16, 16)
            assert isinstance(labels, torch.Tensor)
            assert labels.dtype == indices.dtype == torch.int64 and len(indices) <= batch_size
            for image, label, index in zip(images, labels.tolist(), indices.tolist()):
                assert index % world_size == rank and index not in seen
                assert label == LABELS[index]
                seen[index] = image
    assert sorted(seen) == list(range(NUM))
    for index, image in seen.items():
        assert np.array_equal(image.numpy(), eval_transform(IMAGES[index], 16))


def test_more_ranks_than_samples(tmp_path):
    folder = write_classification(tmp_path / "tiny", IMAGES[:2], [0, 1], NAMES)
    shares = [list(load_eval_set(folder, 8, rank, 4).batches(3)) for rank in range(4)]
    assert [len(share) for share in shares] == [1, 1, 0, 0]


def test_retrieval_captions_are_cut_at_newlines_only(tmp_path):
    captions = [["a cat", "one\u2028line\x0bwith\x85odd spaces"], ["b"], ["c", "", "d"]]
    folder = write_retrieval(tmp_path / "flickr", IMAGES[:3], captions)
    eval_set = load_eval_set(folder, 16)
    (_, labels, indices), (_, last, _) = list(eval_set.batches(2))
    assert eval_set.kind == "retrieval" and not eval_set.classnames and not eval_set.templates
    assert labels == [captions[0], ["b"]] and last == [["c", "d"]]
    assert indices.tolist() == [0, 1]


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg", "PNG"])
def test_image_formats(tmp_path, suffix):
    image = encode(synthetic_photo(0, 40, 30), f".{suffix.lower()}")
    folder = write_classification(tmp_path / "a", [image], [0], NAMES, suffix=suffix)
    (images, _, _), *_ = load_eval_set(folder, 16).batches(1)
    assert np.array_equal(images[0].numpy(), eval_transform(image, 16))


def test_names_with_folders_and_other_members(folder):
    """The key may hold a path, as in tars made of a folder; other suffixes are not looked at."""
    write_tar(
        folder / "test/2.tar",
        {"./x/s0.cls": b"1\n", "./x/s0.jpg": IMAGES[0], "./x/s0.npy": b"", "README": b""},
    )
    eval_set = load_eval_set(folder, 16)
    assert eval_set.num_samples == 21 and eval_set.samples[-1].key == "./x/s0"


def cut(path, keep):
    os.truncate(path, keep)


# What is done to a good set, and what the error must name.
DAMAGE = {
    "nothing in it": (lambda f: (shutil.rmtree(f), f.mkdir()), "pets is no evaluation set"),
    "class names not UTF-8": (
        lambda f: (f / "classnames.txt").write_bytes("Bär\ncat\ndog".encode("latin-1")),
        "classnames.txt is not UTF-8",
    ),
    "shard missing": (
        lambda f: os.unlink(f / "test/1.tar"),
        r"nshards.txt says 3.*missing \['1.tar'",
    ),
    "shard too many": (lambda f: write_tar(f / "test/3.tar", {}), r"unexpected \['3.tar'\]"),
    "no count": (lambda f: os.unlink(f / "test/nshards.txt"), "nshards.txt is missing"),
    "count is no number": (lambda f: (f / "test/nshards.txt").write_text("3 shards"), "'3 shards'"),
    "no class names": (lambda f: os.unlink(f / "classnames.txt"), "classnames.txt is missing"),
    "no templates": (
        lambda f: os.unlink(f / "zeroshot_classification_templates.txt"),
        "templates.txt is missing",
    ),
    "template without place": (
        lambda f: (f / "zeroshot_classification_templates.txt").write_text("a photo of a {}."),
        "has no {c}",
    ),
    "too few class names": (
        lambda f: (f / "classnames.txt").write_text("cat\ndog"),
        "s0000002 has label 2, but classnames.txt names 2 classes",
    ),
    "empty class name": (lambda f: (f / "classnames.txt").write_text("cat\n\ndog"), "empty line"),
    "multilabel": (lambda f: (f / "dataset_type.txt").write_text("multilabel"), "'multilabel'"),
    "cut inside a member": (lambda f: cut(f / "test/1.tar", 1000), "1.tar"),
    "cut between members": (
        lambda f: cut(f / "test/2.tar", whole_samples(f / "test/2.tar", 2)),
        "2.tar is cut short",
    ),
    "not a tar": (lambda f: (f / "test/0.tar").write_bytes(b"x" * 3000), "0.tar cannot be read"),
    "image missing": (
        lambda f: write_tar(
            f / "test/0.tar", {"s1.cls": b"0", "s2.jpg": IMAGES[0], "s2.cls": b"0"}
        ),
        "1 samples lack image or .cls, the first is s1",
    ),
    "label missing": (
        lambda f: write_tar(f / "test/0.tar", {"s1.jpg": IMAGES[0]}),
        "the first is s1",
    ),
    "label no number": (
        lambda f: write_tar(f / "test/0.tar", {"s1.jpg": IMAGES[0], "s1.cls": b"cat"}),
        "s1.cls is not valid",
    ),
    "negative label": (
        lambda f: write_tar(f / "test/0.tar", {"s1.jpg": IMAGES[0], "s1.cls": b"-1"}),
        "label -1",
    ),
    "key twice": (
        lambda f: write_tar(f / "test/0.tar", {"s0000012.jpg": IMAGES[0], "s0000012.cls": b"1"}),
        "s0000012 occurs in an earlier shard",
    ),
    "two images": (
        lambda f: write_tar(f / "test/0.tar", {"s1.jpg": b"", "s1.png": b"", "s1.cls": b"1"}),
        "s1 has two members like s1.png",
    ),
}


def whole_samples(path, count):
    """Bytes of the first `count` samples: two members each, a header and padded data."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[2 * count].offset


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_set_that_is_not_whole_is_refused(folder, kind):
    load_eval_set(folder, 16)
    harm, message = DAMAGE[kind]
    harm(folder)
    with pytest.raises(EvalSetError, match=message):
        load_eval_set(folder, 16)


def test_empty_captions_are_refused(tmp_path):
    folder = write_retrieval(tmp_path / "r", IMAGES[:2], [["a"], [" "]])
    with pytest.raises(EvalSetError, match="s0000001.txt holds no caption"):
        load_eval_set(folder, 16)


@pytest.mark.parametrize("image", [b"", b"<html>", IMAGES[0][:-300]], ids=["empty", "html", "cut"])
def test_an_image_that_cannot_be_decoded_ends_the_evaluation(tmp_path, image):
    images = [*IMAGES[:4], image, *IMAGES[5:8]]
    folder = write_classification(tmp_path / "pets", images, LABELS[:8], NAMES)
    with pytest.raises(EvalSetError, match="pets: s0000004 in .*0.tar cannot be decoded"):
        list(load_eval_set(folder, 16).batches(2))


def test_a_loop_left_early_ends_its_threads(folder):
    for _ in load_eval_set(folder, 16).batches(2):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("eval-set")]


def test_the_name_of_a_set_is_its_folders(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_eval_set(".", 16).name == load_eval_set(f"{folder}/", 16).name == "pets"
