"""Ranks by counting against ranks by sorting; intervals against published values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.eval import ranking
from pipeline.eval.ranking import count_rivals, wilson_interval


@settings(max_examples=60, deadline=None)
@given(
    num_images=st.integers(1, 12),
    captions=st.integers(1, 5),
    copies=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_counts_equal_a_full_sort(num_images, captions, copies, seed):
    """Images as queries, several captions each, some captions being copies of others."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(num_images, 6, generator=generator), dim=1)
    texts = F.normalize(torch.randn(num_images * captions, 6, generator=generator), dim=1)
    for _ in range(copies):
        source, target = torch.randint(len(texts), (2,), generator=generator).tolist()
        texts[target] = texts[source]
    owners = torch.arange(num_images).repeat_interleave(captions)
    scores = images @ texts.T
    best = torch.stack([scores[i][owners == i].max() for i in range(num_images)])

    rivals = count_rivals(images, best, torch.arange(num_images), texts, owners)

    for i in range(num_images):
        wrong = scores[i][owners != i].double()
        lead = wrong - best[i].double()
        assert rivals.above[i] == (lead > 1e-6).sum()
        assert rivals.equal[i] == (lead.abs() <= 1e-6).sum()
        for k in (1, 5, 10):
            against, in_favour = (hit[i].item() for hit in rivals.hits(k))
            # The best right answer is placed after, or before, the wrong ones of equal score.
            order = sorted(
                [(-score, 0) for score in lead.tolist() if abs(score) > 1e-6] + [(0.0, 1)]
            )
            place = order.index((0.0, 1))
            assert in_favour == (place < k)
            assert against == (place + int(rivals.equal[i]) < k)


def test_blocks_do_not_show(monkeypatch):
    queries = F.normalize(torch.randn(23, 8), dim=1)
    gallery = F.normalize(torch.randn(57, 8), dim=1)
    owners, gallery_owners = torch.arange(23), torch.arange(57) % 23
    best = (queries * gallery[:23]).sum(1)
    whole = count_rivals(queries, best, owners, gallery, gallery_owners)
    monkeypatch.setattr(ranking, "_QUERY_BLOCK", 5)
    monkeypatch.setattr(ranking, "_GALLERY_BLOCK", 7)
    parts = count_rivals(queries, best, owners, gallery, gallery_owners)
    assert torch.equal(whole.above, parts.above) and torch.equal(whole.equal, parts.equal)
    assert whole.above.sum() > 0


@pytest.mark.parametrize(
    "hits, trials, low, high",
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score without correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(hits, trials, low, high):
    assert wilson_interval(hits, trials) == pytest.approx([low, high], abs=5e-5)


def test_wilson_interval_stays_inside():
    low, high = wilson_interval(10, 10)
    assert 0.7 < low < 0.8 and high == pytest.approx(1.0) and high <= 1.0
