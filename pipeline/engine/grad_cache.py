"""A batch larger than the towers can hold: their features first, the loss once, then the towers
again, a part at a time, with the loss's gradient (GradCache, arXiv 2101.06983).

    text features, no graph         a part of the texts at a time
    gather of text features         travels while
    image features, no graph        a part of the images at a time
    loss of the whole batch         its reduce-scatter of the text gradient travels while
    images again, with graph        a part at a time, into the cached gradient
    texts again

A tower that takes its whole share at once keeps its graph and runs once. Random numbers (dropout,
left-out patches) are drawn again as they were.
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
        """`micro_batch_size` rows at a time; None is all of them. The features are computed
        here."""
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
        """What the forward gives besides features (logit_scale, logit_bias): of each part alike."""

    def backward(self, backward: Backward, gradients: tuple[Tensor, ...]) -> None:
        """Pass the loss's gradients of `features` and `scalars` on, by one `backward` a part."""
        of_features, *of_scalars = gradients
        if self._outputs is not None:
            _pass_on(backward, self._outputs, (of_features, *of_scalars))
            return
        after = _GeneratorState.of(of_features.device)
        starts = zip(self._parts, of_features.split(len(self._parts[0])), self._states)
        for number, (part, gradient, state) in enumerate(starts):
            state.restore()
            # a scalar's gradient counts once; zero elsewhere keeps it in every part's graph
            mine = of_scalars if number == 0 else [torch.zeros_like(g) for g in of_scalars]
            _pass_on(backward, self._forward(part), (gradient, *mine))
        after.restore()


def _pass_on(
    backward: Backward, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
) -> None:
    """`backward` of a number whose gradient at the outputs is what is given; nothing for a tower
    that is frozen."""
    products = [(o * g).sum().float() for o, g in zip(outputs, gradients)]
    surrogate = torch.stack(products).sum()
    if surrogate.requires_grad:
        backward(surrogate)


@dataclass(frozen=True)
class _GeneratorState:
    """State of torch's random generators; a CUDA generator's is kept on the host, so nothing
    waits."""

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
