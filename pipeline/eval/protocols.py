"""What an evaluation is given: encoders, a tokenizer, evaluation sets. Nothing in pipeline.eval
knows how images are stored or how text is tokenized."""

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
    """An evaluation set: this rank's share of the samples, and facts about the whole set."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """ "classification" or "retrieval"."""
        ...

    @property
    def classnames(self) -> Sequence[str]:
        """Names of the classes; a label is an index into them."""
        ...

    @property
    def templates(self) -> Sequence[str]:
        """Texts with the placeholder {c} for the class name; if empty,
        pipeline.eval.prompts.GENERAL is used."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples of all ranks together."""
        ...

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yield (images, targets, sample_indices): images uint8 (B, 3, S, S); targets are labels
        int64 (B,), or the captions of each image as list[list[str]]; sample_indices int64 (B,).
        Each index of 0 .. num_samples - 1 comes once, on one rank.
        """
        ...
