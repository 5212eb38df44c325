"""The exact rank of the right answer, by counting; and the confidence interval of a share.

Counting needs no top-k and no matrix of all scores: it holds one block in memory, whatever the size
of the gallery.
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
    """For each query, int64 (Q,): how many wrong answers score above its best right answer, and how
    many score the same."""

    above: Tensor
    equal: Tensor

    def hits(self, k: int) -> tuple[Tensor, Tensor]:
        """Two bool tensors (Q,): rank <= k with ties counted against the model, and for it."""
        return self.above + self.equal < k, self.above < k


def count_rivals(
    queries: Tensor, best: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor
) -> Rivals:
    """Count, for each query, the wrong gallery items that score above its right answer, or equal.

    queries (Q, D) and gallery (G, D): unit vectors. best (Q,): the score of the query's best right
    answer. owners (Q,) and gallery_owners (G,) int64: where they are equal, the item is a right
    answer and not counted.
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
    """95 % confidence interval [low, high] of the share hits / trials (Wilson 1927); it stays
    within 0..1 and is valid near both ends."""
    z = 1.959963984540054
    share, z2 = hits / trials, z * z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return [max(0.0, centre - half), min(1.0, centre + half)]
