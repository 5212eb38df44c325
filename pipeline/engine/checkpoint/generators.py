"""The state of a rank's random generators as JSON, so that dropout continues where it stopped."""

from __future__ import annotations

import json
import random

import numpy as np
import torch


def generators_text() -> str:
    """The states of torch's, CUDA's, NumPy's and Python's generators."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: dict[str, object] = {
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), cached],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_available():
        state["cuda"] = bytes(torch.cuda.get_rng_state().numpy()).hex()
    return json.dumps(state) + "\n"


def set_generators(text: str) -> None:
    """Restore the states that `generators_text` wrote."""
    state = json.loads(text)
    torch.set_rng_state(_bytes(state["torch"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
