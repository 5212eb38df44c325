"""state.json: what a checkpoint holds, where each piece of each parameter lies, and the checksums
that show whether it is whole."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import xxhash

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.shards import Fragment

FORMAT = 1
STATE = "state.json"
_OWN_CHECKSUM = "xxh3_128_of_the_rest"


def tensors_name(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def generators_name(rank: int) -> str:
    return f"rng_{rank:05d}.json"


def tensor_key(kind: str, name: str, start: int) -> str:
    """Name of a fragment's value in its rank's file, such as "exp_avg/visual.proj:4096"."""
    return f"{kind}/{name}:{start}"


class FileRecord(NamedTuple):
    name: str
    num_bytes: int
    xxh3_128: str


class Piece(NamedTuple):
    """Elements start .. start + length (exclusive) of the flattened parameter."""

    name: str
    start: int
    length: int


class Parameter(NamedTuple):
    shape: tuple[int, ...]
    kinds: tuple[str, ...]
    """Values stored for it: weight, exp_avg, exp_avg_sq, ema. A frozen parameter has only
    weight."""


@dataclass(frozen=True)
class RankRecord:
    """What one rank has written."""

    files: list[FileRecord]
    pieces: list[Piece]
    parameters: dict[str, Parameter]
    """The parameters of which this rank has a piece."""


def describe(fragments: Sequence[Fragment]) -> tuple[list[Piece], dict[str, Parameter]]:
    pieces = [
        Piece(fragment.name, fragment.start, fragment.values["weight"].numel())
        for fragment in fragments
    ]
    parameters = {
        fragment.name: Parameter(tuple(fragment.shape), tuple(fragment.values))
        for fragment in fragments
    }
    return pieces, parameters


@dataclass(frozen=True)
class Record:
    """The content of one checkpoint's state.json. Everything but `files`, `pieces` and `world_size`
    is the same whatever ZeRO stage and world size wrote it."""

    step: int
    samples_seen: int
    rollbacks: int
    run_id: str
    """Random, drawn when the run began; shows when two runs share a remote folder."""
    data_fingerprint: str
    world_size: int
    optimizer_step: int
    extra_state: dict[str, float | int | bool]
    parameters: dict[str, Parameter]
    files: list[FileRecord]
    pieces: list[list[Piece]]
    """Per rank, in the order in which they lie in tensors_name(rank)."""

    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def to_text(self) -> str:
        """JSON with one line per field. A piece names its parameter by number, because in stage 3
        there are as many pieces as parameters times ranks."""
        numbers = {name: number for number, name in enumerate(self.parameters)}
        content: dict[str, Any] = {"format": FORMAT} | asdict(self)
        content["parameters"] = [[name, *value] for name, value in self.parameters.items()]
        content["pieces"] = [
            [[numbers[name], start, length] for name, start, length in of_rank]
            for of_rank in self.pieces
        ]
        content[_OWN_CHECKSUM] = _checksum(content)
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @staticmethod
    def of_text(text: str) -> Record:
        """Parse what `to_text` wrote; CheckpointError for anything else, or if it was changed."""
        try:
            content = json.loads(text)
            found = content["format"] if "format" in content else None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{STATE} is no JSON object ({error})") from error
        if found != FORMAT:
            raise CheckpointError(f"{STATE} has format {found}, this version reads {FORMAT}")
        if content.pop(_OWN_CHECKSUM, None) != _checksum(content):
            raise CheckpointError(f"{STATE} does not have its own checksum")
        del content["format"]
        content["parameters"] = {
            name: Parameter(tuple(shape), tuple(kinds))
            for name, shape, kinds in content["parameters"]
        }
        names = list(content["parameters"])
        content["files"] = [FileRecord(*file) for file in content["files"]]
        if any("/" in file.name or file.name.startswith(".") for file in content["files"]):
            raise CheckpointError(f"{STATE} names files outside of its folder")
        content["pieces"] = [
            [Piece(names[number], start, length) for number, start, length in of_rank]
            for of_rank in content["pieces"]
        ]
        return Record(**content)


def _checksum(content: dict[str, Any]) -> str:
    # dumps(loads(dumps(x))) == dumps(x): floats are written so that they come back as they were
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def merge_parameters(ranks: Sequence[RankRecord]) -> dict[str, Parameter]:
    """All ranks' parameters by name. Raises CheckpointError unless the ranks' pieces cover each
    element of every parameter exactly once: a gap is found when it is written, not when it is
    needed."""
    merged: dict[str, Parameter] = {}
    pieces: dict[str, list[Piece]] = {}
    for number, rank in enumerate(ranks):
        for name, parameter in rank.parameters.items():
            if merged.setdefault(name, parameter) != parameter:
                raise CheckpointError(
                    f"rank {number} has {name} as {parameter}, a rank before as {merged[name]}"
                )
        for piece in rank.pieces:
            pieces.setdefault(piece.name, []).append(piece)
    for name, parameter in merged.items():
        end = 0
        for piece in sorted(pieces[name], key=lambda piece: piece.start):
            if piece.start != end:
                raise CheckpointError(f"{name}: element {min(end, piece.start)} has no one owner")
            end += piece.length
        if end != math.prod(parameter.shape):
            raise CheckpointError(f"{name}: the ranks own {end} of {math.prod(parameter.shape)}")
    return merged
