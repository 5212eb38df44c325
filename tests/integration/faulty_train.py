"""pipeline.train whose ranks meet a fault: FAULT=kind:rank:step, or kind:rank:first-last.

Steps are counted in this process, from the start or resume on and through roll-backs: a fault that
was survived is not met again.

    kill-forward kill-backward    kill -9 of the rank inside that part of the step
    kill-write                    in the middle of its file of the first checkpoint after the step
    kill-before-latest            of rank 0, between the rename of that checkpoint and `latest`
    nan                           the rank's loss, and with it its gradient, is not a number
    stuck                         the rank never finishes the step
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from pipeline import launch
from pipeline.config import TrainJob
from pipeline.engine.checkpoint import folder, writer
from pipeline.engine.engine import ClipEngine
from pipeline.engine.objective import Objective
from pipeline.engine.towers import IMAGE, Towers
from pipeline.train import train

Wrap = Callable[[Any], Any]


class Fault:
    """Of this rank; `meet` puts it in."""

    def __init__(self, kind: str, first: int, last: int) -> None:
        self.kind, self.first, self.last = kind, first, last
        self.now = -1

    @property
    def active(self) -> bool:
        return self.first <= self.now <= self.last

    @property
    def past(self) -> bool:
        return self.now >= self.first

    def meet(self) -> None:
        places: dict[str, tuple[Any, str, Wrap]] = {
            "stuck": (ClipEngine, "_take_whole", self.sleeping),
            "nan": (Objective, "__call__", self.not_a_number),
            "kill-forward": (Towers, "forward", self.dying_in_the_image_tower),
            "kill-backward": (Objective, "__call__", self.dying_in_the_backward),
            "kill-write": (writer, "write_blocks", self.dying_in_the_file),
            "kill-before-latest": (folder.CheckpointFolder, "point_latest_to", self.dying),
        }
        for owner, name, wrap in ((ClipEngine, "train_step", self.counting), places[self.kind]):
            setattr(owner, name, wrap(getattr(owner, name)))

    def counting(self, train_step: Any) -> Any:
        def step(*arguments: Any) -> Any:
            self.now += 1
            return train_step(*arguments)

        return step

    def sleeping(self, whole: Any) -> Any:
        def stuck(*arguments: Any) -> Any:
            while self.active:
                time.sleep(60)
            return whole(*arguments)

        return stuck

    def not_a_number(self, objective: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            loss, top1 = objective(*arguments, **options)
            return (loss * float("nan") if self.active else loss), top1

        return call

    def dying_in_the_image_tower(self, forward: Any) -> Any:
        def call(module: Any, tower: str, batch: Any) -> Any:
            if self.active and tower == IMAGE:
                die()
            return forward(module, tower, batch)

        return call

    def dying_in_the_backward(self, objective: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            loss, top1 = objective(*arguments, **options)
            if self.active:
                loss.register_hook(die)
            return loss, top1

        return call

    def dying_in_the_file(self, write_blocks: Any) -> Any:
        def write(path: Any, blocks: Any) -> Any:
            if self.past and path.suffix == ".safetensors":
                path.write_bytes(b"".join(map(bytes, blocks))[:1000])
                die()
            return write_blocks(path, blocks)

        return write

    def dying(self, point_latest_to: Any) -> Any:
        def point(manager: Any, step: int) -> None:
            if self.past:
                die()
            point_latest_to(manager, step)

        return point


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def faulty_train(config: TrainJob) -> int:
    kind, rank, steps = os.environ["FAULT"].split(":")
    if os.environ["RANK"] == rank:
        first, _, last = steps.partition("-")
        Fault(kind, int(first), int(last or first)).meet()
    return train(config)


if __name__ == "__main__":
    name = "tests.integration.faulty_train"
    sys.exit(launch.main(name, faulty_train, sys.argv[1:]))
