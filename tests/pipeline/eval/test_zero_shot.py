"""Zero-shot scores against numbers worked out by hand, in one process and in two."""

from __future__ import annotations

import pytest
import torch

from pipeline.eval import EvalError, evaluate_model
from tests.gloo import run_gloo
from tests.pipeline.eval.toy_sets import Tables, ToySet, random_table, tokenize


def evaluate(known: Tables, toy: ToySet, batch_size: int = 3) -> dict:
    return evaluate_model(
        known.encode_image, known.encode_text, tokenize, [toy], device="cpu", batch_size=batch_size
    )[toy.name]


def test_hand_computed_example():
    """Three classes; images at 10, 50 and 80 degrees.

    Text "0" lies at 0 degrees, "1" at 60, "2" at 120; nearest classes: 0, 1, 1. True: 0, 1, 2.
    """
    angle = torch.deg2rad(torch.tensor([0.0, 60.0, 120.0]))
    texts = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([[1.0], [7.0], [0.1]])
    seen = torch.deg2rad(torch.tensor([10.0, 50.0, 80.0]))
    images = torch.stack([seen.cos(), seen.sin()], dim=1) * 5
    toy = ToySet("toy", "classification", 3, [0, 1, 2], classnames=["0", "1", "2"])
    result = evaluate(Tables(images, texts), toy)
    assert result["top1"] == pytest.approx(2 / 3)
    assert result["mean_per_class_recall"] == pytest.approx(2 / 3)
    assert result["top1_chance"] == pytest.approx(1 / 3)
    assert result["top1_interval"] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert "top5" not in result  # three classes: all are among the five best
    first, _, last = result["examples"]
    assert [item["class"] for item in first["top"]] == ["0", "1", "2"]
    assert first["top"][0]["score"] == pytest.approx(0.9848, abs=1e-4)  # cos 10 degrees
    assert last["class"] == "2" and last["top"][0]["class"] == "1"


def test_mean_recall_weighs_classes_not_images():
    """Class 0 has four images, three of them right; class 1 has one, which is wrong."""
    images = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    toy = ToySet("toy", "classification", 5, [0, 0, 0, 0, 1], classnames=["0", "1", "2"])
    result = evaluate(Tables(images, torch.tensor([[1.0, 0], [0, 1], [-1, 0]])), toy)
    assert result["top1"] == pytest.approx(3 / 5)
    assert result["mean_per_class_recall"] == pytest.approx((3 / 4 + 0) / 2)  # class 2 is absent


class TwoTemplates(Tables):
    """Texts "a i" and "b i" have different features: rows i and 3 + i."""

    def encode_text(self, tokens):
        return self.texts[tokens[:, 1]]


def two_templates(texts: list[str]) -> torch.Tensor:
    tokens = tokenize(texts)
    for row, text in enumerate(texts):
        tokens[row, 1] += 3 if text.startswith("b") else 0
    return tokens


def test_ensemble_is_the_normalised_mean_of_unit_vectors():
    """Template a puts class 0 at 0 degrees and class 1 at 90; template b at 60 and 90, ten times as
    long. The image at 50 degrees: a alone says class 1, the mean (30 and 90) says class 0.

    Without normalising each text first the mean would lie at 55.3 degrees; the image at 61 degrees
    of class 1 tells: it is 1 degree nearer to 90 than to 30.
    """
    degrees = torch.deg2rad(torch.tensor([0.0, 90, 180, 60, 90, 180]))
    texts = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    texts[3:] *= 10
    seen = torch.deg2rad(torch.tensor([50.0, 61.0]))
    known = Tables(torch.stack([seen.cos(), seen.sin()], dim=1), texts)
    toy = ToySet(
        "toy", "classification", 2, [0, 1], classnames=["0", "1", "2"], templates=["a {c}", "b {c}"]
    )
    result = evaluate_model(
        known.encode_image, known.encode_text, two_templates, [toy], device="cpu", batch_size=2
    )["toy"]
    assert result["top1"] == 1.0
    assert result["single_templates"] == [
        {"template": "a {c}", "top1": 0.5},
        {"template": "b {c}", "top1": 0.5},
    ]


def test_classes_of_one_name_tie_and_ties_count_against():
    texts = random_table(8, 6, seed=0)
    names = ["0", "1", "2", "3", "4", "5", "6", "6"]  # as ImageNet has "missile" twice
    toy = ToySet("toy", "classification", 8, list(range(8)), classnames=names)
    result = evaluate(Tables(torch.cat([texts[:7], texts[6:7]]), texts), toy)
    assert result["top1"] == pytest.approx(6 / 8)
    assert result["top1_ties_for"] == 1.0
    assert result["top5"] == result["top5_ties_for"] == 1.0


def random_case(rank: int = 0, world_size: int = 1, num_images: int = 41) -> dict:
    texts = random_table(11, 8, seed=5)
    labels = torch.randint(11, (num_images,), generator=torch.Generator().manual_seed(6)).tolist()
    images = texts[labels] + 1.2 * random_table(num_images, 8, seed=7)
    toy = ToySet(
        "toy",
        "classification",
        num_images,
        labels,
        classnames=[str(i) for i in range(11)],
        templates=["{c}", "a {c}"],
        rank=rank,
        world_size=world_size,
    )
    return evaluate(Tables(images, texts), toy, batch_size=5)


def test_top_k_equals_brute_force():
    texts = random_table(11, 8, seed=5)
    labels = torch.randint(11, (41,), generator=torch.Generator().manual_seed(6))
    images = texts[labels] + 1.2 * random_table(41, 8, seed=7)
    scores = images @ torch.nn.functional.normalize(texts, dim=1).T
    result = random_case()
    for k in (1, 5):
        hits = (scores.topk(k, dim=1).indices == labels[:, None]).any(1)
        assert result[f"top{k}"] == pytest.approx(hits.double().mean().item())
    assert 0.2 < result["top1"] < 0.9 < result["top5"] <= 1


@pytest.mark.parametrize("world_size, num_images", [(2, 41), (3, 2)])
def test_ranks_agree_with_one_process(world_size, num_images):
    """Three ranks and two images: one rank has none, and more ranks than classes are possible."""
    results = run_gloo(random_case, world_size, num_images)
    alone = random_case(0, 1, num_images)
    assert results[0] == results[-1]
    for result in (results[0], alone):
        for example in result["examples"]:
            for item in example["top"]:
                item["score"] = round(item["score"], 5)  # the batch's make-up moves the last bits
    assert results[0] == alone


def test_more_ranks_than_classes():
    for result in run_gloo(_two_classes, 3):
        assert result["top1"] == 1.0 and result["num_samples"] == 4


def _two_classes(rank: int, world_size: int) -> dict:
    toy = ToySet(
        "toy",
        "classification",
        4,
        [0, 1, 1, 0],
        classnames=["0", "1"],
        rank=rank,
        world_size=world_size,
    )
    texts = torch.eye(2)
    return evaluate(Tables(texts[[0, 1, 1, 0]], texts), toy)


def test_scores_do_not_round_to_bfloat16():
    """At 1/256 apart in cosine near 1, bfloat16 would see equal scores."""
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.03], [0, 1.0]])
    toy = ToySet("toy", "classification", 2, [0, 1], classnames=["0", "1", "2"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(Tables(texts[:2], texts), toy)["top1"] == 1.0


def test_features_that_are_not_finite_are_no_score():
    """Nothing is above nan: each answer would count as right."""
    toy = ToySet("toy", "classification", 3, [0, 1, 2], classnames=["0", "1", "2"])
    with pytest.raises(EvalError, match="features that are not finite"):
        evaluate(Tables(torch.full((3, 3), torch.nan), torch.eye(3)), toy)


def test_what_is_refused():
    known = Tables(torch.eye(3), torch.eye(3))
    toy = ToySet("toy", "classification", 3, [0, 1, 2], classnames=["0", "1", "2"])
    toy.skipped = {1}
    with pytest.raises(EvalError, match="toy: 2 images were scored, but the set says 3"):
        evaluate(known, toy)
    toy.skipped, toy.templates = set(), ["a photo"]
    with pytest.raises(EvalError, match="'a photo' has no {c}"):
        evaluate(known, toy)
    toy.kind = "multilabel"
    with pytest.raises(EvalError, match="kind 'multilabel'"):
        evaluate(known, toy)
    with pytest.raises(EvalError, match="two have one name"):
        evaluate_model(
            known.encode_image,
            known.encode_text,
            tokenize,
            [toy, toy],
            device="cpu",
            batch_size=1,
        )
