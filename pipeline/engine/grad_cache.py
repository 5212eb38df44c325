"""Trains on a batch larger than the towers can hold (GradCache, arXiv 2101.06983): all features
first, then the loss once, then the towers again, one micro-batch at a time, with the loss's
gradient.

    text features, no graph         one micro-batch of texts at a time
    image features, no graph        one micro-batch of images at a time; meanwhile the text features
                                    are gathered
    loss of the whole batch
    images again, with graph        one micro-batch at a time, with the cached gradient; meanwhile
                                    the text gradient is reduced and scattered
    texts again, with graph         one micro-batch at a time

A tower that takes its whole share at once keeps its graph and runs once. The second run draws the
same random numbers (dropout, left-out patches) as the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, ...]]
Backward = Callable[[Tensor], object]


class CachedTower:
    """One tower over one rank's share of a batch."""

    def __init__(self, forward: Forward, batch: Tensor, micro_batch_size: int | None) -> None:
        """Compute the features, `micro_batch_size` rows at a time; None takes all rows at once."""
        self._forward = forward
        self._parts = batch.split(micro_batch_size or len(batch))
        self._whole = len(self._parts) == 1
        self._states = []
        outputs = []
        with torch.set_grad_enabled(self._whole):
            for part in self._parts:
                self._states.append(_GeneratorState.of(batch.device))
                outputs.append(forward(part))
        self._outputs = outputs[0] if self._whole else None
        self.features = torch.cat([output[0] for output in outputs]).detach().requires_grad_()
        self.scalars = tuple(value.detach().requires_grad_() for value in outputs[0][1:])
        """What the forward returns besides features (logit_scale, logit_bias); the same for each
        micro-batch."""

    def backward(self, backward: Backward, gradients: tuple[Tensor, ...]) -> None:
        """Backpropagate the loss's gradients of `features` and `scalars`, with one call of
        `backward` per micro-batch."""
        of_features, *of_scalars = gradients
        if self._outputs is not None:
            _pass_on(backward, self._outputs, (of_features, *of_scalars))
            return
        after = _GeneratorState.of(of_features.device)
        starts = zip(self._parts, of_features.split(len(self._parts[0])), self._states)
        for number, (part, gradient, state) in enumerate(starts):
            state.restore()
            # a scalar's gradient counts once; zeros keep it in the other micro-batches' graphs
            for_scalars = of_scalars if number == 0 else [torch.zeros_like(g) for g in of_scalars]
            _pass_on(backward, self._forward(part), (gradient, *for_scalars))
        after.restore()


def _pass_on(
    backward: Backward, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
) -> None:
    """Call `backward` on a number whose gradient at `outputs` is `gradients`. A frozen tower has no
    gradient; then nothing is called."""
    products = [(o * g).sum().float() for o, g in zip(outputs, gradients)]
    surrogate = torch.stack(products).sum()
    if surrogate.requires_grad:
        backward(surrogate)


@dataclass(frozen=True)
class _GeneratorState:
    """State of torch's random generators. The CUDA generator keeps its state on the host, so
    reading it does not wait for the device."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> _GeneratorState:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
