"""Image-text retrieval: recall at 1, 5 and 10 in both directions, exact at any size.

A hit is any right answer among the best k: an image has one or more captions, a caption one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.distributed.group import Group
from pipeline.eval.counts import count_sum
from pipeline.eval.embedding import Embedder, float32_scores
from pipeline.eval.pictures import data_uri, evenly_spaced
from pipeline.eval.protocols import EvalError, EvalSet
from pipeline.eval.ranking import Rivals, count_rivals, wilson_interval

RECALLS = (1, 5, 10)
MAX_PICTURES = 50_000
"""With more images than this (4 kB each) the examples have no pictures."""


@dataclass
class _Share:
    """The n images and m captions that one rank has embedded."""

    images: Tensor
    """(n, D)"""
    image_indices: Tensor
    """(n,) global."""
    captions: Tensor
    """(m, D)"""
    caption_images: Tensor
    """(m,) global index of the caption's image; the captions of an image follow each other."""
    texts: dict[int, list[str]]
    pictures: dict[int, str]


@dataclass
class _Gallery:
    """All N images and M captions, on every rank; captions in the order of their images."""

    images: Tensor
    captions: Tensor
    caption_images: Tensor


def score_retrieval(
    embedder: Embedder, eval_set: EvalSet, ranks: Group, num_examples: int
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in both directions, with examples; equal on every rank. Collective.

    Each rank scores its own images and captions against all. Equal scores count against the model;
    `..._ties_for` is the recall with them counted for it. EvalError when an image has no caption,
    or is not on exactly one rank.
    """
    with ranks.raise_on_all_ranks(f"evaluate {eval_set.name}"):
        share = _embed(embedder, eval_set, num_examples)
    gallery = _gather(share, eval_set, ranks)
    with float32_scores(embedder.device):
        image_to_text, text_to_image = _rank(share, gallery)
    counts = _hit_counts("image_to_text", image_to_text) | _hit_counts(
        "text_to_image", text_to_image
    )
    result = _summary(count_sum(ranks, counts, embedder.device), gallery)
    result["examples"] = _examples(share, gallery, ranks, num_examples)
    return result


def _embed(embedder: Embedder, eval_set: EvalSet, num_examples: int) -> _Share:
    images: list[Tensor] = []
    indices: list[Tensor] = []
    owners: list[int] = []
    flat: list[str] = []
    texts: dict[int, list[str]] = {}
    pictures: dict[int, str] = {}
    keep_pictures = num_examples > 0 and eval_set.num_samples <= MAX_PICTURES
    for batch, captions, sample_indices in eval_set.batches(embedder.batch_size):
        images.append(embedder.images(batch))
        indices.append(sample_indices)
        for image, index, own in zip(batch, sample_indices.tolist(), captions, strict=True):
            if not own:
                raise EvalError(f"{eval_set.name}: image {index} has no caption")
            texts[index] = own
            flat += own
            owners += [index] * len(own)
            if keep_pictures:
                pictures[index] = data_uri(image)
    caption_features = embedder.texts(flat)
    device, width = embedder.device, caption_features.shape[1]
    return _Share(
        images=torch.cat(images) if images else torch.zeros(0, width, device=device),
        image_indices=torch.cat(indices or [torch.zeros(0, dtype=torch.int64)]).to(device),
        captions=caption_features,
        caption_images=torch.tensor(owners, dtype=torch.int64, device=device),
        texts=texts,
        pictures=pictures,
    )


def _gather(share: _Share, eval_set: EvalSet, ranks: Group) -> _Gallery:
    total = eval_set.num_samples
    seen = share.image_indices.bincount(minlength=total)
    captions = share.caption_images.bincount(minlength=total)
    seen, captions = ranks.sum(torch.stack([seen[:total], captions[:total]]))
    if not bool((seen == 1).all()):
        wrong = int((seen != 1).nonzero()[0])
        raise EvalError(
            f"{eval_set.name}: image {wrong} of {total} was given {int(seen[wrong])} times over "
            "all ranks: give each rank its share, and check the set's files"
        )
    ends = captions.cumsum(0)
    positions = _caption_positions(share, ends - captions)
    return _Gallery(
        images=ranks.gather_rows(share.images, share.image_indices, total),
        captions=ranks.gather_rows(share.captions, positions, int(ends[-1])),
        caption_images=torch.repeat_interleave(torch.arange(total, device=ends.device), captions),
    )


def _caption_positions(share: _Share, starts: Tensor) -> Tensor:
    """Row of each of this rank's captions in the gallery: the first row of its image, plus the
    caption's position among those of the image."""
    owners = share.caption_images
    change = torch.ones(len(owners), dtype=torch.bool, device=owners.device)
    change[1:] = owners[1:] != owners[:-1]
    arange = torch.arange(len(owners), device=owners.device)
    first = torch.where(change, arange, 0).cummax(0).values if len(owners) else arange
    return starts[owners] + arange - first


def _rank(share: _Share, gallery: _Gallery) -> tuple[Rivals, Rivals]:
    """Rivals of this rank's images among all captions, and of its captions among all images."""
    right = (share.captions * gallery.images[share.caption_images]).sum(1)
    best = torch.full((len(gallery.images),), -torch.inf, device=right.device)
    best = best.scatter_reduce(0, share.caption_images, right, "amax")[share.image_indices]
    image_to_text = count_rivals(
        share.images, best, share.image_indices, gallery.captions, gallery.caption_images
    )
    every_image = torch.arange(len(gallery.images), device=right.device)
    text_to_image = count_rivals(
        share.captions, right, share.caption_images, gallery.images, every_image
    )
    return image_to_text, text_to_image


def _hit_counts(direction: str, rivals: Rivals) -> dict[str, Tensor]:
    hits = [rivals.hits(k) for k in RECALLS]
    return {
        direction: torch.stack([against.sum() for against, _ in hits]),
        f"{direction}_ties_for": torch.stack([in_favour.sum() for _, in_favour in hits]),
    }


def _summary(counts: dict[str, Tensor], gallery: _Gallery) -> dict[str, Any]:
    num_images, num_captions = len(gallery.images), len(gallery.captions)
    result: dict[str, Any] = {
        "kind": "retrieval",
        "num_samples": num_images,
        "num_captions": num_captions,
    }
    for direction, queries in (("image_to_text", num_images), ("text_to_image", num_captions)):
        for k, hits, ties_for in zip(
            RECALLS,
            counts[direction].tolist(),
            counts[f"{direction}_ties_for"].tolist(),
            strict=True,
        ):
            name = f"{direction}_r{k}"
            result[name] = hits / queries
            # captions of one image are right or wrong together: at worst they count as one sample
            result[f"{name}_interval"] = wilson_interval(hits * num_images // queries, num_images)
            result[f"{name}_ties_for"] = ties_for / queries
    return result


def _examples(
    share: _Share, gallery: _Gallery, ranks: Group, num_examples: int
) -> list[dict[str, Any]]:
    """The five images that score best for the first caption of each of `num_examples` evenly spaced
    images. Collective."""
    own: dict[int, Any] = {}
    for index in evenly_spaced(len(gallery.images), num_examples):
        if index in share.texts:
            first = int((share.caption_images == index).nonzero()[0])
            scores = gallery.images @ share.captions[first]
            top = scores.topk(min(5, len(scores)))
            found = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            own[index] = {
                "caption": share.texts[index][0],
                "image": index,
                "top": [{"image": image, "score": score} for image, score in found],
            }
    examples = list(ranks.merge(own).values())
    shown = {item["image"] for example in examples for item in example["top"]}
    pictures = ranks.merge({i: uri for i, uri in share.pictures.items() if i in shown})
    for example in examples:
        for item in example["top"]:
            item["picture"] = pictures.get(item["image"], "")
    return examples
