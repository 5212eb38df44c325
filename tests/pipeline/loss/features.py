"""Feature batches for the loss tests."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated_features(
    num_rows: int,
    dimension: int,
    *,
    seed: int = 0,
    noise: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Unit image and text features that share clusters and a common direction.

    Independent random features hide missing cross-rank gradients: the error of open_clip's
    local_loss without gather_with_grad is 5e-4 on them and 8e-2 on features like these.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    clusters = normal(max(2, num_rows // 4), dimension)
    common = normal(dimension)
    pairs = clusters[torch.randint(len(clusters), (num_rows,), generator=generator)] + common
    pairs = pairs + noise * normal(num_rows, dimension)
    image = torch.nn.functional.normalize(pairs + noise * normal(num_rows, dimension), dim=1)
    text = torch.nn.functional.normalize(pairs + noise * normal(num_rows, dimension), dim=1)
    return image.to(dtype), text.to(dtype)


EXTREMES = ("equal rows", "one orthogonal", "identical pairs", "opposite")


def extreme_features(case: str, num_rows: int = 40, dimension: int = 8) -> tuple[Tensor, Tensor]:
    """Unit float32 features whose logits lie as far apart, or as close, as the scale allows."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(num_rows, dimension, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    if case == "identical pairs":
        return rows, rows
    if case == "one orthogonal":
        text = torch.nn.functional.pad(rows[:, :-1], (0, 1))
        return torch.cat([torch.eye(dimension)[-1:], text[1:]]), text
    text = rows[:1].expand(num_rows, dimension).contiguous()
    if case == "equal rows":
        return text, text
    if case != "opposite":
        raise ValueError(f"case is {case!r}; pass one of {', '.join(EXTREMES)}")
    # one image has cosine -1 with every text, the others +1
    return torch.cat([-text[:1], text[1:]]), text
