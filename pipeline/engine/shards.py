"""The part of the optimizer's state that this rank owns, as named pieces of parameters.

DeepSpeed 0.19.8 keeps the float32 masters and the moments in flat buffers: in stages 1 and 2 one
per parameter group, cut into equal parts over ranks wherever the cut falls; in stage 3 one per
sub-group, in which each parameter is cut by itself. This file makes both look alike, so that
checkpoints, LAMB and the average of the weights do not depend on the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """The piece of one parameter that this rank owns."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """Index of the piece's first element in the flattened parameter."""
    values: dict[str, Tensor]
    """Flat views of equal length: "weight", "exp_avg", "exp_avg_sq", and "ema" if the
    run keeps an average. Writing into a view changes the live state. A frozen parameter has only
    its weight."""


@dataclass(frozen=True)
class _Piece:
    """Where a fragment lies: `flat[flat_start : flat_start + numel]` is the parameter from `start`
    on."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    flat: Tensor
    flat_start: int


class ParameterShards:
    """This rank's shards in a live DeepSpeed engine of stage 1, 2 or 3, offloaded or not.

    named: the model's own parameters by name. DeepSpeed adds attributes to them that torch's type
    does not have.
    """

    def __init__(self, engine: Any, named: Mapping[str, Any], *, with_ema: bool) -> None:
        self._zero = engine.optimizer
        self._stage: int = engine.zero_optimization_stage()
        self._named = named
        self._trained = {name: p for name, p in named.items() if p.requires_grad}
        self.pieces = self._pieces_3() if self._stage == 3 else self._pieces_1_2()
        self.flats = list({id(piece.flat): piece.flat for piece in self.pieces}.values())
        self._ema = {id(flat): flat.detach().clone() for flat in self.flats} if with_ema else {}

    def fragments(self) -> list[Fragment]:
        """This rank's pieces, with views of their live values. Moments that do not exist yet are
        created as zeros."""
        found = []
        for piece in self.pieces:
            sources = {"weight": piece.flat.detach()} | self._moments(piece.flat)
            if self._ema:
                sources["ema"] = self._ema[id(piece.flat)]
            values = {
                key: source.narrow(0, piece.flat_start, piece.numel)
                for key, source in sources.items()
            }
            found.append(Fragment(piece.name, piece.shape, piece.start, values))
        return found + self._frozen()

    @property
    def optimizer_step(self) -> int:
        """Number of updates that the moments contain. Reading it waits for the device."""
        return int(self._state(self.flats[0])["step"]) if self.flats else 0

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        for flat in self.flats:
            self._state(flat)["step"].fill_(step)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model's parameters, after masters were written. Collective."""
        if self._stage == 3:
            self._zero._partition_all_parameters()
            for number in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
            persistent = self._zero.persistent_parameters
            if persistent:  # small ones, which stay whole on every rank between steps
                persistent[0].all_gather(persistent)
        else:
            self._zero.update_lp_params()
            for number in range(len(self._zero.bit16_groups)):
                self._zero._update_model_bit16_weights(number)
            for name, parameter in self._named.items():
                if name not in self._trained:
                    dist.broadcast(parameter.data, src=0)

    @torch.no_grad()
    def average(self, decay: float, applied: Tensor | float) -> None:
        """ema += (1 - decay) * applied * (weight - ema): `applied` is 0 on a skipped step."""
        weight = (1.0 - decay) * applied
        for flat in self.flats:
            ema = self._ema[id(flat)]
            # an offloaded flat is on the host
            here = weight.to(flat.device) if isinstance(weight, Tensor) else weight
            ema.lerp_(flat.detach(), here)

    def swap_average(self) -> None:
        """Exchange the masters and their average, in the model too; a second call undoes the first.
        Collective."""
        for flat in self.flats:
            ema = self._ema[id(flat)]
            kept = flat.detach().clone()
            flat.data.copy_(ema)
            ema.copy_(kept)
        self.publish()

    def masters(self, names: list[str]) -> dict[str, Tensor]:
        """float32 masters, (1,) each, of parameters that have one element; equal on every rank.
        Collective."""
        values = torch.zeros(len(names), device=self._device())
        for piece in self.pieces:
            if piece.name in names:
                value = piece.flat.detach().narrow(0, piece.flat_start, 1)
                values[names.index(piece.name)] = value.to(values.device).squeeze()
        dist.all_reduce(values)
        return {name: values[number : number + 1] for number, name in enumerate(names)}

    def gradients(self) -> list[tuple[str, Tensor]]:
        """(parameter name, averaged gradient) of the pieces that this rank is about to update. Only
        between backward and step, and without offload."""
        names = {id(parameter): name for name, parameter in self._trained.items()}
        groups = self._zero.fp16_groups if self._stage == 3 else self._zero.params_in_partition
        found = []
        for number, parameters in enumerate(groups):
            gradients = [
                gradient
                for gradient in self._zero.averaged_gradients[number]
                if not getattr(gradient, "_zero_padding", False)
            ]
            found += [
                (names[id(parameter)], gradient)
                for parameter, gradient in zip(parameters, gradients)
            ]
        return found

    def _device(self) -> torch.device:
        return next(iter(self._named.values())).device

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._zero.optimizer.state[flat]
        if not state:  # torch creates it in the first step; a checkpoint may be loaded before that
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(flat, requires_grad=False)
        return state

    def _moments(self, flat: Tensor) -> dict[str, Tensor]:
        state = self._state(flat)
        return {key: state[key] for key in MOMENTS}

    def _pieces_1_2(self) -> list[_Piece]:
        pieces = []
        for name, parameter in self._trained.items():
            mapping = parameter._hp_mapping
            if mapping is None:  # it lies in other ranks' parts
                continue
            flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            where = mapping.lp_fragment_address
            start = mapping.hp_fragment_address.start
            pieces.append(
                _Piece(name, tuple(parameter.shape), where.start, where.numel, flat, start)
            )
        return pieces

    def _pieces_3(self) -> list[_Piece]:
        rank = dist.get_rank(self._zero.dp_process_group)
        pieces = []
        for name, parameter in self._trained.items():
            position = self._zero.grad_position[self._zero.get_param_id(parameter)]
            group, flat_start, part = position
            start = rank * part
            numel = min(part, parameter.ds_numel - start)  # the last parts are padded
            if numel > 0:
                flat = self._zero.fp32_partitioned_groups_flat[group]
                shape = tuple(parameter.ds_shape)
                pieces.append(_Piece(name, shape, start, numel, flat, flat_start))
        return pieces

    def _frozen(self) -> list[Fragment]:
        """Frozen parameters, which no optimizer holds: rank 0 has all of them, in stage 3 each rank
        its part."""
        rank = dist.get_rank()
        found = []
        for name, parameter in self._named.items():
            if name in self._trained:
                continue
            if self._stage != 3:
                if rank == 0:
                    flat = parameter.data.view(-1)
                    found.append(Fragment(name, tuple(parameter.shape), 0, {"weight": flat}))
                continue
            part = parameter.ds_tensor.numel()
            numel = min(part, parameter.ds_numel - rank * part)
            if numel > 0:
                flat = parameter.ds_tensor.data.view(-1)[:numel]
                shape = tuple(parameter.ds_shape)
                found.append(Fragment(name, shape, rank * part, {"weight": flat}))
        return found
