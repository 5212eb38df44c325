"""Checkpoints that are whole or absent: written aside, renamed when every rank is done, `latest`
last.

checkpoints/latest                     name of the newest whole checkpoint
checkpoints/step_00000200/state.json   step, samples_seen, and what must be equal to resume
                         /engine/      DeepSpeed's files: weights, moments, learning-rate schedule
                         /rng_0.pt     generators of rank 0, ...
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed import World
from pipeline.engine.engine import CHECKPOINT_TAG, ClipEngine
from pipeline.state import TrainState

LATEST = "latest"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which and what to do."""


class CheckpointManager:
    """Saves and finds the checkpoints of one run. `data_fingerprint` guards against resuming on
    other data."""

    def __init__(self, run_dir: Path, world: World, *, keep: int, data_fingerprint: str) -> None:
        self._folder = run_dir / "checkpoints"
        self._world, self._keep, self._data_fingerprint = world, keep, data_fingerprint

    def save(self, engine: ClipEngine, state: TrainState) -> None:
        """Collective. Until the rename the run's newest checkpoint is the one before."""
        name = f"step_{state.step:08d}"
        aside, final = self._folder / f".{name}.tmp", self._folder / name
        with self._world.together("make room for a checkpoint"):
            if self._world.is_main:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
        with self._world.together(f"write checkpoint {name}"):
            engine.save(aside)
            torch.save(_rng_state(), aside / f"rng_{self._world.rank}.pt")
        with self._world.together(f"finish checkpoint {name}"):
            if self._world.is_main:
                content = asdict(state) | self._must_be_equal()
                (aside / "state.json").write_text(json.dumps(content, indent=1) + "\n")
                shutil.rmtree(final, ignore_errors=True)
                os.replace(aside, final)
                _write_aside_then_rename(self._folder / LATEST, name + "\n")
                self._prune()

    def load_latest(self, engine: ClipEngine) -> TrainState:
        """Collective. The state to go on from: of the newest whole checkpoint, or a fresh one when
        there is none."""
        folder = newest_checkpoint(self._folder)
        if folder is None:
            return TrainState()
        content = json.loads((folder / "state.json").read_text())
        for name, now in self._must_be_equal().items():
            if content[name] != now:
                raise CheckpointError(
                    f"{folder}: {name} was {content[name]}, is now {now}; resume with the same, "
                    f"or start another run_dir"
                )
        with self._world.together(f"load {folder.name}"):
            engine.load(folder)
            # the generators' state is a dict of tensors and numbers of our own; weights_only
            # refuses anything else
            _set_rng_state(torch.load(folder / f"rng_{self._world.rank}.pt", weights_only=True))
        return TrainState(step=content["step"], samples_seen=content["samples_seen"])

    def _must_be_equal(self) -> dict[str, int | str]:
        return {"world_size": self._world.world_size, "data_fingerprint": self._data_fingerprint}

    def _prune(self) -> None:
        for old in sorted(self._folder.glob("step_*"))[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """What `latest` names; else (killed between the two renames) the highest whole step; else
    None."""
    if (folder / LATEST).exists():
        named = folder / (folder / LATEST).read_text().strip()
        if (named / "state.json").exists():
            return named
    whole = [path for path in sorted(folder.glob("step_*")) if (path / "state.json").exists()]
    return whole[-1] if whole else None


def newest_step(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; CheckpointError when there is none."""
    found = newest_checkpoint(run_dir / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{run_dir}: no checkpoint yet; train first (python -m pipeline.train "
            f"run_dir={run_dir})"
        )
    return int(json.loads((found / "state.json").read_text())["step"])


def load_model_weights(run_dir: Path, step: int | None = None) -> dict[str, Tensor]:
    """The float32 weights of a checkpoint (the newest, or that of `step`) by parameter name, on the
    CPU, for any ZeRO stage.

    Loads only files that this project wrote: DeepSpeed's are pickles.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = run_dir / "checkpoints"
    found = newest_checkpoint(folder) if step is None else folder / f"step_{step:08d}"
    if found is None or not (found / "state.json").exists():
        there = ", ".join(sorted(path.name for path in folder.glob("step_*"))) or "none"
        raise CheckpointError(
            f"{run_dir}: no checkpoint{'' if step is None else f' of step {step}'}; there is: "
            f"{there}"
        )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(found), CHECKPOINT_TAG)
    return {name: tensor.clone() for name, tensor in weights.items()}


def _write_aside_then_rename(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text)
    os.replace(aside, path)


def _rng_state() -> dict[str, object]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: dict[str, object] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
