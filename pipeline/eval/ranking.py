"""The exact rank of the right answer, by counting; and the interval of a share.

Counting needs no top-k and no matrix of all scores: memory is one block, whatever the gallery.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines closer than this are equal: float32 rounds a dot product of unit vectors by as much, and
the same caption embedded in two batches differs by as much."""
_QUERY_BLOCK, _GALLERY_BLOCK = 1024, 4096


class Rivals(NamedTuple):
    """Per query, int64 (Q,): how many wrong answers score above its best right one, or equal to
    it."""

    above: Tensor
    equal: Tensor

    def hits(self, k: int) -> tuple[Tensor, Tensor]:
        """Two bool tensors (Q,): whether the right answer is among the k best with ties counted
        against the model, and for it."""
        return self.above + self.equal < k, self.above < k


def count_rivals(
    queries: Tensor, best: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor
) -> Rivals:
    """Compare every query with every gallery item of another owner.

    queries (Q, D) and gallery (G, D): unit vectors. best (Q,): the score of the query's best right
    answer. owners (Q,) and gallery_owners (G,) int64: equal means a right answer, which is no
    rival.
    """
    above = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    equal = torch.zeros_like(above)
    for q in range(0, len(queries), _QUERY_BLOCK):
        rows = slice(q, q + _QUERY_BLOCK)
        for g in range(0, len(gallery), _GALLERY_BLOCK):
            columns = slice(g, g + _GALLERY_BLOCK)
            lead = queries[rows] @ gallery[columns].T - best[rows, None]
            rival = owners[rows, None] != gallery_owners[None, columns]
            above[rows] += ((lead > TIE) & rival).sum(1)
            equal[rows] += ((lead.abs() <= TIE) & rival).sum(1)
    return Rivals(above, equal)


def wilson_interval(hits: int, trials: int) -> list[float]:
    """95 % interval of a share (Wilson 1927): [low, high]; stays inside 0..1 and holds near
    them."""
    z = 1.959963984540054
    share, z2 = hits / trials, z * z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return [max(0.0, centre - half), min(1.0, centre + half)]
