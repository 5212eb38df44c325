"""A smaller model, what a step changes, and what an engine sends to whom: seen where
torch.distributed hands it to a process group, which whoever calls goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

SMALL = ["model.embed_dim=32", "model.vision.width=32", "model.text.width=32"]
"""Half of tiny: most of its parameters are the embeddings of 49,408 words."""

# torch 2.13 renamed two and keeps both names
OPERATIONS = {
    "allreduce": "all-reduce",
    "allreduce_coalesced": "all-reduce",
    "reduce": "reduce",
    "broadcast": "broadcast",
    "allgather": "all-gather",
    "all_gather_single": "all-gather",
    "_allgather_base": "all-gather",
    "all_gather_single_coalesced": "all-gather",
    "allgather_into_tensor_coalesced": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "reduce_scatter_single": "reduce-scatter",
    "_reduce_scatter_base": "reduce-scatter",
    "reduce_scatter_single_coalesced": "reduce-scatter",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "all_to_all_single": "all-to-all",
    "alltoall": "all-to-all",
    "alltoall_base": "all-to-all",
}
IN_PLACE = ("all-reduce", "reduce", "broadcast")
"""Others take outputs first, then inputs."""


@dataclass(frozen=True)
class Event:
    """`what` begins ("start") or is waited for ("wait")."""

    what: str
    phase: str
    group: str
    dtype: torch.dtype
    numel: int
    """Elements of this rank's input."""


def group_names(engine: Any) -> dict[str, str]:
    """Readable names of a ClipEngine's communicators, by torch's."""
    return {
        engine._objective._group.group_name: "features",
        engine._engine.optimizer.dp_process_group.group_name: "deepspeed",
    }


@contextmanager
def recorded_collectives(groups: dict[str, str]) -> Iterator[list[Event]]:
    """Every collective of this process in the block, in order. A group that `groups` does not name
    is "world"."""
    events: list[Event] = []
    works: dict[int, tuple[Any, Event]] = {}
    # from __dict__: what getattr gives is no method when it is put back
    originals = {name: vars(dist.ProcessGroup)[name] for name in OPERATIONS}
    wait = vars(dist.Work)["wait"]

    def recording(name: str) -> Callable[..., Any]:
        def call(self: dist.ProcessGroup, *args: Any, **options: Any) -> Any:
            inputs = list(_tensors(args[0] if OPERATIONS[name] in IN_PLACE else args[1]))
            event = Event(
                OPERATIONS[name],
                "start",
                groups.get(self.group_name, "world"),
                inputs[0].dtype,
                sum(tensor.numel() for tensor in inputs),
            )
            events.append(event)
            work = originals[name](self, *args, **options)
            if work is not None:
                works[id(work)] = (work, event)  # kept, so that no other gets its id
            return work

        return call

    def waiting(self: dist.Work, *args: Any) -> Any:
        if id(self) in works:
            event = works.pop(id(self))[1]
            events.append(Event(event.what, "wait", event.group, event.dtype, event.numel))
        return wait(self, *args)

    for name in OPERATIONS:
        setattr(dist.ProcessGroup, name, recording(name))
    dist.Work.wait = waiting  # type: ignore[method-assign, assignment]
    try:
        yield events
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)
        dist.Work.wait = wait  # type: ignore[method-assign]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def snapshot(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of everything that a step may change on this rank: masters, moments, averages, and
    the parameters as the forward reads them."""
    found = {
        f"{fragment.name} {key} {fragment.start}": value.clone()
        for fragment in engine.shards.fragments()
        for key, value in fragment.values.items()
    }
    for name, parameter in engine._towers.named_parameters():
        found[name] = _read_by_the_forward(parameter).detach().clone()
    found["optimizer_step"] = torch.tensor(engine.shards.optimizer_step)
    return found


def _read_by_the_forward(parameter: Any) -> torch.Tensor:
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    part = parameter.ds_tensor.numel()  # stage 3 pads the last part with whatever was in memory
    mine = parameter.ds_numel - dist.get_rank() * part
    return parameter.ds_tensor[: max(0, min(part, mine))]


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of what is not equal bit for bit; of all where their names differ."""
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [name for name in one if not torch.equal(one[name], other[name])]
