"""Zero-shot classification: class names become the classifier (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.distributed.group import Group
from pipeline.eval.counts import count_sum
from pipeline.eval.embedding import Embedder, float32_scores
from pipeline.eval.pictures import data_uri, evenly_spaced
from pipeline.eval.prompts import GENERAL, fill
from pipeline.eval.protocols import EvalError, EvalSet
from pipeline.eval.ranking import count_rivals, wilson_interval

MAX_SINGLE_TEMPLATES = 8
"""At most this many templates, the first ones, are also scored alone. With all eighty of ImageNet,
the heads would cost ten times the image tower of a ViT-B/32."""
_CLASS_BLOCK = 256


def score_classification(
    embedder: Embedder, eval_set: EvalSet, ranks: Group, num_examples: int
) -> dict[str, Any]:
    """Top-1 and top-5 of the template ensemble, mean recall per class, and single templates; equal
    on every rank. Collective.

    Equal scores (two classes of one name) count against the model; `top1_ties_for` is the score
    with them counted for it. EvalError when ranks together do not score each sample once.
    """
    templates = list(eval_set.templates) or list(GENERAL)
    with ranks.raise_on_all_ranks(f"evaluate {eval_set.name}"):
        rows, classes = _class_vectors(embedder, eval_set.classnames, templates, ranks)
    heads = ranks.gather_rows(rows, classes, len(eval_set.classnames)).transpose(0, 1).contiguous()
    with ranks.raise_on_all_ranks(f"evaluate {eval_set.name}"):
        counts, examples = _count(embedder, eval_set, heads, num_examples)
    counts = count_sum(ranks, counts, embedder.device)
    if int(counts["samples"]) != eval_set.num_samples:
        raise EvalError(
            f"{eval_set.name}: {int(counts['samples'])} images were scored, but the set says "
            f"{eval_set.num_samples}: give each rank its share, and check the set's files"
        )
    result = _summary(counts, eval_set, templates)
    result["examples"] = list(ranks.merge(examples).values())
    return result


def _class_vectors(
    embedder: Embedder, classnames: Any, templates: list[str], ranks: Group
) -> tuple[Tensor, Tensor]:
    """Embed this rank's k classes. Returns their vectors (k, 1 + singles, D), the ensemble first,
    and their labels (k,)."""
    labels = list(range(ranks.rank, len(classnames), ranks.size))
    num_singles = min(len(templates), MAX_SINGLE_TEMPLATES) if len(templates) > 1 else 0
    parts = []
    for start in range(0, max(1, len(labels)), _CLASS_BLOCK):
        block = labels[start : start + _CLASS_BLOCK]
        texts = [text for label in block for text in fill(templates, classnames[label])]
        features = embedder.texts(texts)
        by_class = features.view(len(block), len(templates), features.shape[1])
        ensemble = F.normalize(by_class.mean(1), dim=1)
        parts.append(torch.cat([ensemble[:, None], by_class[:, :num_singles]], dim=1))
    return torch.cat(parts), torch.tensor(labels, dtype=torch.int64, device=embedder.device)


def _count(
    embedder: Embedder, eval_set: EvalSet, heads: Tensor, num_examples: int
) -> tuple[dict[str, Tensor], dict[int, Any]]:
    """Score this rank's samples; return counts by name, and examples by sample index.

    heads: (1 + singles, K, D), vectors of K classes for the ensemble and each single template.
    """
    num_heads, num_classes, _ = heads.shape
    shapes = {
        "samples": (),
        "hits": (num_heads, 2),  # top-1, top-5
        "ties_for": (2,),
        "class_samples": (num_classes,),
        "class_hits": (num_classes,),
    }
    device = embedder.device
    counts = {
        name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in shapes.items()
    }
    wanted = set(evenly_spaced(eval_set.num_samples, num_examples))
    examples: dict[int, Any] = {}
    every_class = torch.arange(num_classes, device=device)
    for images, labels, indices in eval_set.batches(embedder.batch_size):
        features = embedder.images(images)
        targets = labels.to(device)
        with float32_scores(device):
            for number, head in enumerate(heads):
                best = (features * head[targets]).sum(1)
                rivals = count_rivals(features, best, targets, head, every_class)
                (first, first_for), (five, five_for) = rivals.hits(1), rivals.hits(5)
                counts["hits"][number] += torch.stack([first.sum(), five.sum()])
                if number == 0:
                    counts["ties_for"] += torch.stack([first_for.sum(), five_for.sum()])
                    counts["class_hits"] += targets[first].bincount(minlength=num_classes)
        counts["samples"] += len(labels)
        counts["class_samples"] += targets.bincount(minlength=num_classes)
        for row, index in enumerate(indices.tolist()):
            if index in wanted:
                with float32_scores(device):
                    scores = heads[0] @ features[row]
                examples[index] = _example(images[row], int(labels[row]), scores, eval_set)
    return counts, examples


def _example(image: Tensor, label: int, scores: Tensor, eval_set: EvalSet) -> dict[str, Any]:
    top = scores.topk(min(5, len(scores)))
    return {
        "picture": data_uri(image),
        "label": label,
        "class": eval_set.classnames[label],
        "top": [
            {"label": found, "class": eval_set.classnames[found], "score": score}
            for found, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    }


def _summary(counts: dict[str, Tensor], eval_set: EvalSet, templates: list[str]) -> dict[str, Any]:
    samples, num_classes = int(counts["samples"]), len(eval_set.classnames)
    present = counts["class_samples"] > 0
    recall = counts["class_hits"][present] / counts["class_samples"][present]
    result: dict[str, Any] = {
        "kind": "classification",
        "num_samples": samples,
        "num_classes": num_classes,
        "mean_per_class_recall": float(recall.double().mean()),
    }
    # with five classes or fewer, every class is in the top five
    metrics = {"top1": 0, "top5": 1} if num_classes > 5 else {"top1": 0}
    for metric, column in metrics.items():
        hits = int(counts["hits"][0, column])
        result[metric] = hits / samples
        result[f"{metric}_interval"] = wilson_interval(hits, samples)
        result[f"{metric}_ties_for"] = int(counts["ties_for"][column]) / samples
        result[f"{metric}_chance"] = (1, 5)[column] / num_classes
    result["templates"] = templates
    result["single_templates"] = [
        {"template": template}
        | {metric: int(hits[column]) / samples for metric, column in metrics.items()}
        for template, hits in zip(templates, counts["hits"][1:], strict=False)
    ]
    return result
