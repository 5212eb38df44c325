"""The folder of a run as its ranks see it: one run at a time, and a configuration that changes only
when all of them have accepted it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pipeline.config import ConfigError, TrainJob
from pipeline.config.frozen import to_yaml
from pipeline.config.run_config import Remains, commit_config, lock_run, refuse_misfit
from pipeline.config.schema import RefusedStartError
from pipeline.distributed.group import Group
from pipeline.distributed.world import World
from pipeline.state import TrainState


class RunFolder:
    """Made before anything is written into the folder: rank 0 takes its lock, for as long as this
    process lives, and looks at what is there. Collective, as `accept` is: RefusedStartError on
    every rank, once rank 0 has said why."""

    def __init__(self, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        self._ranks = Group.of(None)
        self._remains: Remains | None = None
        self._refuse_alike(self._open)

    def accept(self, state: TrainState) -> None:
        """Write config.yaml; every rank calls this when it has all that it needs to train, with the
        state of the checkpoint that it loaded. Where one fails before, the file stays as it was."""
        text = to_yaml(self._config).encode()
        digests = self._ranks.all_gather(hashlib.sha256(text).hexdigest())
        self._refuse_alike(lambda: self._check(state.step, digests))
        with self._world.raise_on_all_ranks(f"write the configuration of {self._config.run_dir}"):
            if self._world.is_main:
                commit_config(self._config, begins=state.step == 0)
        if self._remains is not None and self._remains.gone:
            self._world.tell(f"{self._remains.gone}, the newest checkpoint, is gone")
        steps = self._config.train.steps
        if state.step >= steps:
            self._world.tell(f"train.steps = {steps}: done, the run has {state.step} steps")
        elif state.step:
            self._world.tell(f"goes on from step {state.step}, {state.samples_seen} samples seen")

    def _open(self) -> None:
        self._lock = lock_run(self._config.run_dir)
        refuse_misfit(self._config)
        self._remains = Remains.of(self._config)

    def _check(self, step: int, digests: list[str]) -> None:
        assert self._remains is not None, "of rank 0"
        if len(set(digests)) > 1:
            raise ConfigError(
                f"run_dir = {self._config.run_dir}: the ranks have read different configurations; "
                "start again, and do not change the file that --config names meanwhile"
            )
        if step:
            self._remains.refuse_another_configuration(self._config)
        else:
            self._remains.refuse_lost_checkpoints()

    def _refuse_alike(self, check: Callable[[], None]) -> None:
        def problem() -> str | None:
            try:
                check()
            except ConfigError as error:
                return str(error)
            return None

        text = self._ranks.broadcast(problem)
        if text is not None:
            self._world.tell(f"error: {text}")
            raise RefusedStartError(text)
