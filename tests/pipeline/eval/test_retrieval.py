"""Recall in both directions against brute force over the full matrix, in one process and in two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.distributed.group import PeerError
from pipeline.eval import EvalError, evaluate_model, retrieval
from tests.gloo import run_gloo
from tests.pipeline.eval.toy_sets import Tables, ToySet, random_table, tokenize

NUM_IMAGES = 61


def captions_of(num_images: int = NUM_IMAGES) -> list[list[str]]:
    """Five an image, but one for every seventh and six for every tenth."""
    counts = [1 if i % 7 == 0 else 6 if i % 10 == 0 else 5 for i in range(num_images)]
    numbers = iter(range(sum(counts)))
    return [[f"caption {next(numbers)}" for _ in range(count)] for count in counts]


def tables() -> Tables:
    """Captions near their image, so that recalls lie between 0 and 1."""
    captions = captions_of()
    images = random_table(NUM_IMAGES, 16, seed=1)
    owners = torch.tensor([i for i, own in enumerate(captions) for _ in own])
    return Tables(images, images[owners] + 1.6 * random_table(len(owners), 16, seed=2))


def score(rank: int, world_size: int, **change) -> dict:
    known = tables()
    toy = ToySet("toy", "retrieval", NUM_IMAGES, captions_of(), rank=rank, world_size=world_size)
    for name, value in change.items():
        setattr(toy, name, value)
    results = evaluate_model(
        known.encode_image, known.encode_text, tokenize, [toy], device="cpu", batch_size=7
    )
    assert known.num_images == len(range(rank, NUM_IMAGES, world_size))
    return results["toy"]


def brute_force() -> dict[str, float]:
    known, captions = tables(), captions_of()
    owners = torch.tensor([i for i, own in enumerate(captions) for _ in own])
    images = F.normalize(known.images.double(), dim=1)
    scores = images @ F.normalize(known.texts.double(), dim=1).T
    recalls = {}
    for k in (1, 5, 10):
        found = owners[scores.topk(k, dim=1).indices]
        hits = (found == torch.arange(NUM_IMAGES)[:, None]).any(1)
        recalls[f"image_to_text_r{k}"] = hits.double().mean().item()
        hits = (scores.T.topk(k, dim=1).indices == owners[:, None]).any(1)
        recalls[f"text_to_image_r{k}"] = hits.double().mean().item()
    return recalls


def test_one_process_equals_brute_force():
    result = score(0, 1)
    expected = brute_force()
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.1 < result["text_to_image_r1"] < 0.9 and result["num_captions"] == len(tables().texts)
    for name in expected:
        low, high = result[f"{name}_interval"]
        assert low < result[name] < high


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_with_one_process(world_size):
    results = run_gloo(score, world_size)
    assert all(result == results[0] for result in results)
    alone, shared = score(0, 1), results[0]
    found = [[item["image"] for item in example["top"]] for example in shared.pop("examples")]
    assert found == [[i["image"] for i in example["top"]] for example in alone.pop("examples")]
    assert shared == alone


def test_examples_are_the_nearest_images():
    result = score(0, 1)
    images = F.normalize(tables().images, dim=1)
    assert len(result["examples"]) == 12
    for example in result["examples"]:
        own = captions_of()[example["image"]]
        assert example["caption"] == own[0]
        text = tables().texts[int(own[0].split()[1])]
        nearest = (images @ text).topk(5).indices.tolist()
        assert [item["image"] for item in example["top"]] == nearest
        assert all(item["picture"].startswith("data:image/png;base64,") for item in example["top"])


def test_equal_captions_count_against_the_model():
    """Four images, all with one caption text: the caption finds its image by luck only."""
    known = Tables(random_table(4, 8, seed=3), torch.ones(1, 8))
    toy = ToySet("toy", "retrieval", 4, [["same 0"]] * 4)
    result = evaluate_model(
        known.encode_image, known.encode_text, tokenize, [toy], device="cpu", batch_size=3
    )["toy"]
    assert result["image_to_text_r1"] == 0.0 and result["image_to_text_r1_ties_for"] == 1.0
    assert result["image_to_text_r5"] == 1.0
    assert result["text_to_image_r1"] == result["text_to_image_r1_ties_for"] == 0.25


def test_a_large_set_is_scored_without_pictures(monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_PICTURES", NUM_IMAGES - 1)
    examples = score(0, 1)["examples"]
    assert len(examples) == 12 and {item["picture"] for e in examples for item in e["top"]} == {""}


def test_a_missing_or_captionless_image_is_an_error():
    with pytest.raises(EvalError, match="toy: image 5 of 61 was given 0 times"):
        toy = ToySet("toy", "retrieval", NUM_IMAGES, captions_of(), skipped={5})
        known = tables()
        evaluate_model(
            known.encode_image, known.encode_text, tokenize, [toy], device="cpu", batch_size=7
        )
    captions = captions_of()
    captions[3] = []
    with pytest.raises(EvalError, match="image 3 has no caption"):
        score(0, 1, targets=captions)


def _one_rank_fails(rank: int, world_size: int) -> str:
    try:
        score(rank, world_size, broken=5)
    except (PeerError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_failure_on_one_rank_reaches_all():
    told = run_gloo(_one_rank_fails, 2, timeout_s=60)
    assert told == [
        "PeerError: could not evaluate toy: rank 1 of 2: OSError: image 5 cannot be decoded",
        "OSError: image 5 cannot be decoded",
    ]
