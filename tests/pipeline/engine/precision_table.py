"""What each precision stores, sends and computes in, measured on a live engine of two ranks; and
the table of it in pipeline/engine/README.md.

    python -m tests.pipeline.engine.precision_table            # prints it
    python -m tests.pipeline.engine.precision_table --write    # into the README
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Precision
from tests.gloo import run_gloo
from tests.pipeline.engine.conftest import start_forkserver
from tests.pipeline.engine.probes import SMALL, Event, group_names, recorded_collectives
from tests.pipeline.engine.training import batch_of, engine_of

README = Path(__file__).resolve().parents[3] / "pipeline" / "engine" / "README.md"
BEGIN, END = "<!-- precision table: begin -->\n", "<!-- precision table: end -->\n"
STAGES = (1, 2, 3)
STEPS = 5
PROBED_STEP = 3
# all-reduces of up to three numbers are norms, flags and scalars, no gradients
SMALLEST_GRADIENT = 4
SHORT = {
    "torch.float32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float64": "fp64",
}


def measure(
    rank: int, world_size: int, jobs: Sequence[tuple[Precision, int]]
) -> list[dict[str, Any]]:
    return [_measure_one(rank, world_size, precision, stage) for precision, stage in jobs]


def _measure_one(rank: int, world_size: int, precision: Precision, stage: int) -> dict[str, Any]:
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed refuses fp16 on a CPU without AVX512-FP16; torch computes it there all the same
    get_accelerator().is_fp16_supported = lambda: True
    overrides = [f"train.precision={precision.value}", f"deepspeed.zero_stage={stage}", *SMALL]
    engine, _ = engine_of(rank, world_size, overrides)
    if precision is Precision.fp16:
        # at 2^16, where it starts, the first steps of so small a model overflow
        engine.load_extra_state(engine.extra_state() | {"loss_scale": 2.0**8})
    steps, masters, events = [], [], []
    for step in range(STEPS):
        masters.append(engine.shards.masters(["logit_scale"])["logit_scale"].clone())
        with recorded_collectives(group_names(engine)) as recorded:
            steps.append(engine.train_step(batch_of(step, rank, world_size), step))
        if step == PROBED_STEP:
            events = [event for event in recorded if event.phase == "start"]
    result = {
        "stored": _stored(engine, stage),
        "sent": _sent(events),
        "scale dtype": steps[-1].logit_scale.dtype,
        "loss dtype": steps[-1].loss.dtype,
        "scales": torch.stack([step.logit_scale for step in steps]),
        "masters": torch.cat(masters),
        "losses": torch.stack([step.loss for step in steps]),
        "norms": torch.stack([step.grad_norms[2] for step in steps]),
        "skipped": [float(step.skipped) for step in steps],
    }
    engine.close()
    return result


def _stored(engine: Any, stage: int) -> dict[str, list[str]]:
    """dtypes by elements, the most first, of the parameters that the forward uses, their masters,
    and Adam's moments."""
    parameters = engine._towers.parameters()
    kept = [value.ds_tensor if stage == 3 else value for value in parameters]
    values = [fragment.values for fragment in engine.shards.fragments()]
    return {
        "weights": _dtypes((value.dtype, value.numel()) for value in kept),
        "masters": _dtypes((value["weight"].dtype, len(value["weight"])) for value in values),
        "moments": _dtypes(
            (value[key].dtype, len(value[key]))
            for value in values
            for key in ("exp_avg", "exp_avg_sq")
        ),
    }


def _sent(events: list[Event]) -> dict[str, list[str]]:
    """dtypes of what goes over the wire in a step, the most elements first."""

    def of(belongs: Callable[[Event], bool]) -> list[str]:
        return _dtypes((event.dtype, event.numel) for event in events if belongs(event))

    return {
        "gradients": of(
            lambda e: (
                e.group != "features"
                and e.what in ("all-reduce", "reduce", "reduce-scatter")
                and e.numel >= SMALLEST_GRADIENT
            )
        ),
        "gathered weights": of(lambda e: e.group != "features" and e.what == "all-gather"),
        "features": of(
            lambda e: (
                e.group == "features"
                and e.what == "all-gather"
                and e.dtype.is_floating_point
                and e.numel >= SMALLEST_GRADIENT
            )
        ),
        "text gradient": of(lambda e: e.group == "features" and e.what == "reduce-scatter"),
    }


def _dtypes(amounts: Iterable[tuple[torch.dtype, int]]) -> list[str]:
    total: Counter[str] = Counter()
    for dtype, numel in amounts:
        total[str(dtype)] += numel
    return [name for name, _ in total.most_common()]


def measure_all() -> dict[tuple[Precision, int], list[dict[str, Any]]]:
    """By precision and stage, each rank's."""
    jobs = [(precision, stage) for precision in Precision for stage in STAGES]
    ranks = run_gloo(measure, 2, jobs, timeout_s=280)
    return {job: [rank[number] for rank in ranks] for number, job in enumerate(jobs)}


def table(results: dict[tuple[Precision, int], list[dict[str, Any]]]) -> str:
    """Markdown; stages that do not differ share a line."""
    columns = ["weights", "masters", "moments"]
    wires = ["gradients", "gathered weights", "features", "text gradient"]
    head = ["`train.precision`", "stage", *columns, *(f"{wire} sent" for wire in wires)]
    head += ["logit scale in the forward", "loss"]
    lines: dict[tuple[str, ...], list[int]] = {}
    for (precision, stage), (one, *_) in results.items():
        cells = [_cell(one["stored"][column]) for column in columns]
        cells += [_cell(one["sent"][wire]) for wire in wires]
        exact = "= master" if torch.equal(one["scales"], one["masters"]) else "rounded"
        cells += [f"{_cell([str(one['scale dtype'])])}, {exact}", _cell([str(one["loss dtype"])])]
        lines.setdefault((f"`{precision.value}`", *cells), []).append(stage)
    rows = [head, ["---"] * len(head)]
    for (name, *cells), stages in lines.items():
        rows.append([name, ", ".join(map(str, stages)), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(names: list[str]) -> str:
    return ", ".join(SHORT[name] for name in names)


def in_readme() -> str:
    return README.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    start_forkserver()
    made = table(measure_all())
    if "--write" in sys.argv[1:]:
        before, rest = README.read_text().split(BEGIN)
        README.write_text(before + BEGIN + made + END + rest.split(END)[1])
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
