"""Scores all evaluation sets, one after the other; all ranks share the work on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pipeline.distributed.group import Group
from pipeline.eval.embedding import Embedder
from pipeline.eval.protocols import Encoder, EvalError, EvalSet, Tokenizer
from pipeline.eval.retrieval import score_retrieval
from pipeline.eval.zero_shot import score_classification

Scorer = Callable[[Embedder, EvalSet, Group, int], dict[str, Any]]
_SCORERS: dict[str, Scorer] = {
    "classification": score_classification,
    "retrieval": score_retrieval,
}


@torch.no_grad()
def evaluate_model(
    encode_image: Encoder,
    encode_text: Encoder,
    tokenizer: Tokenizer,
    eval_sets: Sequence[EvalSet],
    *,
    device: torch.device | str,
    batch_size: int,
    group: dist.ProcessGroup | None = None,
    num_examples: int = 12,
) -> dict[str, dict[str, Any]]:
    """Score a model on all sets and return the results by set name, equal on every rank; shares are
    in 0..1.

    classification: top1, top5, mean_per_class_recall, single_templates, ...
    retrieval: image_to_text_r1, _r5, _r10, text_to_image_r1, ...
    Each metric comes with `..._interval` (95 %, over test samples only) and `..._ties_for` (the
    score with ties counted for the model; the score itself counts them against it). `examples`
    holds num_examples samples with the model's best answers and small pictures.

    Collective over `group` (None: the default group, or this process alone if there is none): all
    ranks give the same sets in the same order. If a rank fails, it raises its own error and the
    others raise PeerError. EvalError when two sets have one name or a set is of an unknown kind.
    """
    names = [eval_set.name for eval_set in eval_sets]
    if len(set(names)) < len(names):
        raise EvalError(f"evaluation sets {names}: two have one name; rename a folder")
    ranks = Group.of(group)
    embedder = Embedder(encode_image, encode_text, tokenizer, torch.device(device), batch_size)
    results = {}
    for eval_set in eval_sets:
        if eval_set.kind not in _SCORERS:
            raise EvalError(
                f"{eval_set.name} is a set of kind {eval_set.kind!r}; "
                f"{' and '.join(_SCORERS)} can be scored"
            )
        results[eval_set.name] = _SCORERS[eval_set.kind](embedder, eval_set, ranks, num_examples)
    return results
