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
