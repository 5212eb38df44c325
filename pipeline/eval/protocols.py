"""What an evaluation needs to be given. Nothing here knows how images are stored or text is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

Encoder = Callable[[Tensor], Tensor]
"""Images uint8 (B, 3, S, S), or tokens int64 (B, L), -> features (B, D) of any length and dtype."""


class EvalError(ValueError):
    """A score on this set would be wrong; the message names the set and the fix."""


class Tokenizer(Protocol):
    def __call__(self, texts: list[str]) -> Tensor:
        """int64 (len(texts), context_length), zeros after the end token."""
        ...


class EvalSet(Protocol):
    """A rank's share of a set, and what all ranks know of the whole."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """ "classification" or "retrieval"."""
        ...

    @property
    def classnames(self) -> Sequence[str]:
        """By label."""
        ...

    @property
    def templates(self) -> Sequence[str]:
        """With the placeholder {c}; none means pipeline.eval.templates.GENERAL."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples on all ranks together."""
        ...

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Images uint8 (B, 3, S, S); labels int64 (B,), or each image's captions list[list[str]];
        sample_indices int64 (B,), each of 0 .. num_samples - 1 on one rank once.
        """
        ...
