"""Why a run does not learn, in words: each check knows one common reason and speaks of it once,
with what to do. A healthy run hears nothing."""

from __future__ import annotations

import math

from pipeline.config import LossKind, TrainJob

LINES_AT_CHANCE = 10
"""Log lines in a row: at the start of every run the loss is near chance for a while."""
NEAR_CHANCE = 0.01
"""Distance from ln(N) that counts as resting there, as a share of it: a model that has learnt
something is far beyond after LINES_AT_CHANCE lines."""
COLLAPSED_COSINE = 0.99
"""Mean cosine of two samples' features. Random weights give 0.2 to 0.9, trained ones below 0.5."""
LINES_COLLAPSED = 2
EQUAL_SHARE = 0.5
"""Share of a batch's rows whose caption another row has too: as negatives they are wrong."""
FEWEST_STEPS_PER_EPOCH = 20
NO_GRADIENT = 1e-7
"""A tower's gradient norm as a share of the whole norm: rounding gives a tower that the loss does
not reach at most this."""


class RestingLoss:
    """The loss of a model that cannot tell one pair from another is ln(N), N the global batch."""

    def __init__(self, config: TrainJob) -> None:
        self._config = config
        self._chance = math.log(max(config.train.global_batch_size, 2))
        self._lines = 0

    def check(self, step: int, loss: float) -> str | None:
        """loss: mean over the steps of a log line."""
        train = self._config.train
        if self._config.loss.kind is not LossKind.clip or step <= train.warmup_steps:
            return None
        resting = abs(loss - self._chance) <= NEAR_CHANCE * self._chance
        self._lines = self._lines + 1 if resting else 0
        if self._lines != LINES_AT_CHANCE:
            return None
        return (
            f"step {step}: the loss rests at {loss:.2f}, which is ln({train.global_batch_size}): "
            f"the model cannot tell one pair of a batch from another. Look whether the captions "
            f"belong to the pictures, and try another train.lr (now {train.lr:g}) or a longer "
            f"train.warmup_steps (now {train.warmup_steps})"
        )


class CollapsedFeatures:
    """All features of a tower in one direction: no loss can pull them apart again for long."""

    def __init__(self, config: TrainJob) -> None:
        self._config = config
        self._lines = {"image": 0, "text": 0}

    def check(self, step: int, cosines: list[float]) -> list[str]:
        """cosines: mean cosine of two images' features and of two texts' features, or empty."""
        if step <= self._config.train.warmup_steps:
            return []
        found = []
        for tower, cosine in zip(self._lines, cosines):
            self._lines[tower] = self._lines[tower] + 1 if cosine >= COLLAPSED_COSINE else 0
            if self._lines[tower] == LINES_COLLAPSED:
                found.append(self._verdict(step, tower, cosine))
        return found

    def _verdict(self, step: int, tower: str, cosine: float) -> str:
        input_word = {"image": "pictures", "text": "captions"}[tower]
        return (
            f"step {step}: the {tower} features have collapsed to one direction (two of them have "
            f"a cosine of {cosine:.3f} on average). Look whether the {input_word} differ from each "
            f"other, and start again with a lower train.lr (now {self._config.train.lr:g})"
        )


class EqualCaptions:
    """Captions that many samples of a batch share."""

    def __init__(self) -> None:
        self._said = False

    def check(self, step: int, share: float) -> str | None:
        """share: of the global batch's rows, those whose caption another row has too."""
        if self._said or not share >= EQUAL_SHARE:
            return None
        self._said = True
        return (
            f"step {step}: {100 * share:.0f} % of the batch's captions are there more than once: "
            "as negatives they are wrong, and the loss has little to tell apart. Give captions "
            "that say more about each picture, or lower train.global_batch_size; for class names, "
            "judge the run by its zero-shot accuracy, not by its loss"
        )


class NoGradient:
    """A tower that the loss does not reach stays as it is, and nothing else shows that."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def check(self, step: int, grad_norms: list[float]) -> list[str]:
        """grad_norms: of image tower, text tower and all parameters; NaN where one is not known."""
        found = []
        *towers, total = grad_norms
        for name, norm in zip(("image", "text"), towers):
            # comparisons with NaN are false: nothing is known, or the step is skipped
            if name not in self._said and norm <= NO_GRADIENT * total and total < math.inf:
                self._said.add(name)
                found.append(
                    f"step {step}: the {name} tower gets no gradient (norm {norm:.3g}, of all "
                    f"parameters {total:.3g}): its weights do not change. Its features may have "
                    f"collapsed, or its input may be the same for every sample"
                )
        return found


def few_steps_per_epoch(num_samples: int, global_batch_size: int) -> str | None:
    """What to say before a run whose epochs have few steps; None where they have enough."""
    steps = num_samples / global_batch_size
    if steps >= FEWEST_STEPS_PER_EPOCH:
        return None
    better = max(2, num_samples // FEWEST_STEPS_PER_EPOCH)
    return (
        f"an epoch has only {steps:.1f} steps: {num_samples} samples in batches of "
        f"{global_batch_size}. On so few samples more updates help more than a larger batch: try "
        f"train.global_batch_size={better} or less, with a lower train.lr"
    )
