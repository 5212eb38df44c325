"""The order of a step under DeepSpeed's hooks: the text features travel while the image tower runs,
their gradient while the image tower's backward does, on a communicator of their own, and every rank
sends the same things in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL, Event, group_names, recorded_collectives
from tests.pipeline.engine.training import STEPS, batch_of, engine_of, train_each

TOWERS = {"visual": "image", "text": "text"}


def _record_towers(clip: torch.nn.Module, notes: list[Any]) -> None:
    """Notes the forward of each tower, and its backward at the gradient of each parameter, which
    follow each other through the whole tower."""

    def begins(name: str) -> Any:
        return lambda *_: notes.append(f"{name} forward begins")

    def ends(name: str) -> Any:
        return lambda *_: notes.append(f"{name} forward ends")

    def gradient(name: str) -> Any:
        return lambda _: notes.append(f"{name} backward")

    for attribute, name in TOWERS.items():
        tower = getattr(clip, attribute)
        tower.register_forward_pre_hook(begins(name))
        tower.register_forward_hook(ends(name))
        for parameter in tower.parameters():
            parameter.register_hook(gradient(name))


def _orders(rank: int, world_size: int, jobs: list[list[str]]) -> list[list[Any]]:
    """Of each job the notes of its third step."""
    found = []
    for overrides in jobs:
        engine, _ = engine_of(rank, world_size, [*SMALL, *overrides])
        for step in range(2):
            engine.train_step(batch_of(step, rank, world_size), step)
        with recorded_collectives(group_names(engine)) as notes:
            _record_towers(engine._towers.clip, notes)
            engine.train_step(batch_of(2, rank, world_size), 2)
        engine.close()
        found.append([note if isinstance(note, str) else _sent(note) for note in notes])
    return found


def _sent(event: Event) -> Any:
    if event.group == "features" and event.dtype.is_floating_point:
        return f"{event.what} {event.phase}"
    return event


def _first(notes: list[Any], note: str) -> int:
    return notes.index(note)


def _last(notes: list[Any], note: str) -> int:
    return len(notes) - 1 - notes[::-1].index(note)


STAGES = [[f"deepspeed.zero_stage={stage}"] for stage in (1, 2, 3)]
# of 1.6 million parameters, so that gradients are sent in the midst of the backward
BUCKETS = ["deepspeed.reduce_bucket_size=20000"]
PARTS = ["train.image_micro_batch_size=4", "train.text_micro_batch_size=4"]
EARLY = [[*stage, *more] for stage in STAGES for more in ([], BUCKETS, PARTS)]
LATE = [*STAGES[0], "train.overlap_text_gather=false"]


@pytest.mark.slow
def test_order_of_a_step():
    ranks = run_gloo(_orders, 2, [*EARLY, LATE], timeout_s=280)
    for number, overrides in enumerate([*EARLY, LATE]):
        one, other = (rank[number] for rank in ranks)
        assert one == other, f"{overrides}: ranks differ"
    for number, overrides in enumerate(EARLY):
        notes = ranks[0][number]
        check_forward(notes)
        check_backward(notes)
        if overrides[1:] == BUCKETS:
            midst = notes[_first(notes, "image backward") : _last(notes, "image backward")]
            sends = any(isinstance(note, Event) and "reduce" in note.what for note in midst)
            # stage 1 has full gradients anyway and sends after the backward
            assert sends == (overrides[0] != "deepspeed.zero_stage=1"), overrides
    late = ranks[0][-1]
    assert _last(late, "image forward ends") < _first(late, "all-gather start")


def check_forward(notes: list[Any]) -> None:
    order = [
        _first(notes, "text forward begins"),
        _first(notes, "text forward ends"),
        _first(notes, "all-gather start"),
        _first(notes, "image forward begins"),
        _first(notes, "image forward ends"),
        _first(notes, "all-gather wait"),
        _first(notes, "all-reduce start"),  # the sums over columns: in the loss
        _first(notes, "reduce-scatter start"),
    ]
    assert order == sorted(order), notes


def check_backward(notes: list[Any]) -> None:
    order = [
        _first(notes, "reduce-scatter start"),
        _first(notes, "image backward"),
        _last(notes, "image backward"),
        _first(notes, "reduce-scatter wait"),
        _first(notes, "text backward"),
    ]
    assert order == sorted(order), notes
    for note in notes:  # nothing of DeepSpeed's goes over the features' communicator
        if isinstance(note, Event) and note.group == "features":
            assert note.dtype == torch.int64, note


@pytest.mark.slow
def test_the_early_start_changes_no_bit():
    for parts in ([], PARTS):
        jobs = [[*SMALL, *parts], [*SMALL, *parts, "train.overlap_text_gather=false"]]
        for early, late in run_gloo(train_each, 2, jobs):
            assert early["losses"] == late["losses"] and len(early["losses"]) == STEPS
            for one, other in zip(early["fragments"], late["fragments"], strict=True):
                assert all(torch.equal(one[3][key], other[3][key]) for key in one[3])


def test_deepspeed_has_another_communicator():
    (names,) = run_gloo(_groups, 1)
    assert sorted(names.values()) == ["deepspeed", "features"]


def _groups(rank: int, world_size: int) -> dict[str, str]:
    engine, _ = engine_of(rank, world_size, SMALL)
    names = group_names(engine)
    engine.close()
    return names
