"""Pre-norm Transformer blocks shared by the two towers.

Shapes: B samples, L tokens, W width, H heads, D = W / H.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): OpenAI's released weights were trained with this stand-in for GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention; SDPA's fused kernels make the causal one without a mask tensor."""

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        return self.out(self._attend(x))

    def pooled(self, x: Tensor, position: Tensor | int) -> Tensor:
        """`forward` at one position of each sample only: (B, L, W) -> (B, W)."""
        return self.out(select_position(self._attend(x), position))

    def _attend(self, x: Tensor) -> Tensor:
        # All queries, even where one is read: one causal query would need a mask, and QK^T and PV
        # are 1 to 4 % of a block.
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, D)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return attended.transpose(1, 2).flatten(2)


def select_position(x: Tensor, position: Tensor | int) -> Tensor:
    """x[b, position[b]] of each sample, or x[b, position]: (B, L, W) -> (B, W)."""
    if isinstance(position, int):
        return x[:, position]
    return x[torch.arange(x.shape[0], device=x.device), position]


class MLP(nn.Module):
    """W -> 4W -> W, as in every CLIP."""

    def __init__(self, width: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.activation = QuickGELU() if quick_gelu else nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); in training with dropout on what is added."""

    def __init__(
        self, width: int, num_heads: int, *, causal: bool, quick_gelu: bool, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.ln_1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, quick_gelu=quick_gelu)

    def forward(self, x: Tensor, position: Tensor | int | None = None) -> Tensor:
        """(B, L, W) -> (B, L, W), or (B, W) at one position of each sample."""
        if position is None:
            x = x + self._drop(self.attention(self.ln_1(x)))
            return x + self._drop(self.mlp(self.ln_2(x)))
        attended = self._drop(self.attention.pooled(self.ln_1(x), position))
        pooled = select_position(x, position) + attended
        return pooled + self._drop(self.mlp(self.ln_2(pooled)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Transformer(nn.Module):
    """A stack of blocks read at one position.

    Both towers pool one token, so of the last block only that token's output projection and MLP
    matter: computing no more is exact and spares 18 of the block's 24 W^2 FLOPs a token: 6 % of a
    twelve-layer tower, 37 % of a two-layer one.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        causal: bool,
        quick_gelu: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or width % num_heads:
            raise ValueError(
                f"width {width} with {num_heads} heads in {num_layers} layers: "
                "choose at least one layer, and a width that the number of heads divides"
            )
        self.blocks = nn.ModuleList(
            Block(width, num_heads, causal=causal, quick_gelu=quick_gelu, dropout=dropout)
            for _ in range(num_layers)
        )
        # The weights' widths are those of CLIP.initialize_parameters in openai/CLIP, clip/model.py.
        # There they hold for the text tower and the image tower keeps PyTorch's; here for both.
        residual_std = (2 * width * num_layers) ** -0.5
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("attention.qkv.weight"):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith("mlp.up.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=residual_std)

    def forward(self, x: Tensor, position: Tensor | int) -> Tensor:
        """(B, L, W) tokens, position of the pooled one, by sample (B,) or for all -> (B, W)."""
        blocks = list(self.blocks)
        for block in blocks[:-1]:
            x = block(x)
        return cast(Tensor, blocks[-1](x, position))
