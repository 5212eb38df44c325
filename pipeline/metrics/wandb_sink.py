"""W&B: the same run after a resume, its points at the right steps; no outage ends a run."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import uuid
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from data_tools.ground.aside import write_text_aside
from pipeline.config import ConfigError, DataConfig, TrainJob, WandbMode
from pipeline.metrics.examples import Strip

WANDB_ID = "wandb_id"
STEP = "train/step"
"""The x axis of every chart. W&B's own counter only grows: points that are logged with a step below
its last are thrown away, and so would be those of a run that goes back to its checkpoint."""
GROUPS = ("train", "perf", "data", "eval")
# After these an upload that does not come through is left to `wandb sync`.
INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 60.0


class WandbSink:
    """Online when a key is at hand, else a record for `wandb sync`; one run id per
    run directory.

    A run that is resumed offline writes one record per start; `wandb sync` of the folder joins
    them in order. The steps between the checkpoint and the kill are in it twice, with the same
    values.
    """

    def __init__(self, config: TrainJob, run_dir: Path, environment: dict[str, object]) -> None:
        # A notebook or sweep agent that started this process passes on its own W&B service, and in
        # that service the id of a killed run still counts as in use.
        os.environ.pop("WANDB_SERVICE", None)
        import wandb

        self._wandb = wandb
        self._warned = False
        run_id = run_id_of(run_dir)
        logged_config = wandb_config(config, environment)
        mode = chosen_mode(config.logging.wandb_mode)
        try:
            self._run = self._init(config, run_dir, run_id, logged_config, mode)
        except Exception as error:  # whatever W&B or the network does, the run goes on
            if mode is WandbMode.offline:
                raise
            self._say(f"cannot be reached ({type(error).__name__}); this run is recorded offline")
            wandb.teardown()  # else the run's id counts as in use
            self._run = self._init(config, run_dir, run_id, logged_config, WandbMode.offline)
        self._guarded(self._define_axes)

    def _init(
        self,
        config: TrainJob,
        run_dir: Path,
        run_id: str,
        logged_config: dict[str, Any],
        mode: WandbMode,
    ) -> Any:
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )
        return self._wandb.init(
            project=config.logging.wandb_project,
            entity=config.logging.wandb_entity,
            name=run_dir.resolve().name,
            id=run_id,
            resume="allow",
            mode=mode.value,  # type: ignore[arg-type]
            dir=str(run_dir),
            config=logged_config,
            settings=settings,
        )

    def _define_axes(self) -> None:
        self._run.define_metric(STEP, hidden=True)
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric=STEP)

    def write(self, step: int, line: dict[str, float]) -> None:
        # never with step=: see STEP
        self._guarded(lambda: self._run.log({STEP: step} | line))

    def write_images(self, step: int, strips: dict[str, list[Strip]]) -> None:
        """strips: by metric name."""

        def log() -> None:
            images = {
                name: [self._wandb.Image(strip.image, caption=strip.caption) for strip in shown]
                for name, shown in strips.items()
            }
            self._run.log({STEP: step} | images)

        self._guarded(log)

    def close(self) -> None:
        self._guarded(self._run.finish)

    def _guarded(self, call: Callable[[], object]) -> None:
        """Run `call`; warn about the first error only. Nothing is lost: metrics.jsonl has every
        line."""
        try:
            call()
        except Exception as error:  # whatever W&B or the network does, the run goes on
            if not self._warned:
                self._say(f"fails ({type(error).__name__}); metrics.jsonl goes on without it")
            self._warned = True

    @staticmethod
    def _say(what: str) -> None:
        # the exception's text stays out: it may quote a key
        print(f"W&B {what}", file=sys.stderr, flush=True)


def run_id_of(run_dir: Path) -> str:
    """Made once for a run directory, so that a resumed run goes on in the same W&B run."""
    path = run_dir / WANDB_ID
    kept = path.read_text(errors="replace").strip() if path.exists() else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", kept):  # a file that was cut off makes a run of its own
        kept = uuid.uuid4().hex[:8]
        write_text_aside(path, kept)
    return kept


def chosen_mode(asked: WandbMode) -> WandbMode:
    """auto: online when a key is at hand. Raises ConfigError where online is asked without one."""
    import wandb

    if asked not in (WandbMode.auto, WandbMode.online):
        return asked
    wandb.setup(wandb.Settings(silent=True))  # else login says who is logged in, and asks the net
    try:
        # verify would ask the server, and a node without a way out would wait for it
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:  # a key of a wrong form; its text may quote it
        has_key = False
    if asked is WandbMode.online and not has_key:
        raise ConfigError(
            "logging.wandb_mode = online: no W&B key of the right form is at hand; set "
            "WANDB_API_KEY, run `wandb login`, or give offline"
        )
    return WandbMode.online if has_key else WandbMode.offline


def wandb_config(config: TrainJob, environment: dict[str, object]) -> dict[str, Any]:
    """The job as nested values, beside `environment` (git revision, versions, device) and
    `data_card` (paths of the data sets' report.html)."""
    return _plain(dataclasses.asdict(config)) | {
        "environment": environment,
        "data_card": data_cards(config.data),
    }


def data_cards(data: DataConfig) -> list[str]:
    """Paths of the report.html beside the manifests, where there is one. Manifests behind URLs are
    skipped."""
    manifests = [data.manifest] if data.manifest else [source.manifest for source in data.mixture]
    cards = [Path(path).with_name("report.html") for path in manifests if "://" not in path]
    return [str(card.resolve()) for card in cards if card.is_file()]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.value if isinstance(value, Enum) else value
