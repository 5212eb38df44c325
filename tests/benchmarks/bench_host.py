"""What the engine costs beside bare towers, loss and AdamW in plain torch, and what options cost.

    python -m tests.benchmarks.bench_host                       # tiny on a CPU; on a GPU vit_b_32
    python -m tests.benchmarks.bench_host --batch 64,256 --repeats 100
    python -m tests.benchmarks.bench_host --profile             # functions by time, then no table
    python -m tests.benchmarks.bench_host --out FILE            # and writes the tables there

On a CPU all of a step is host time, so whole steps are compared, in seconds and in CPU-seconds of
this process; the latter hold on a busy machine too. On a GPU a step is timed until it returns and
until the device is done.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import pstats
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pipeline.config import Precision, TrainJob
from pipeline.data.batches.batch import Batch
from pipeline.distributed.world import World
from pipeline.loss import clip_loss
from tests.benchmarks.bench_loss import machine, table
from tests.benchmarks.bench_step import write
from tests.benchmarks.step_batches import make_batch
from tests.benchmarks.step_providers import bench_job, build_model, one_rank
from tests.gloo import run_gloo

GOAL = 0.03  # of a bare step
EMA_DECAY = 0.999
Step = Callable[[], Any]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Bare:
    """Towers, loss, backward, clip_grad_norm_ and fused AdamW: what a step cannot do without."""

    def __init__(self, config: TrainJob, device: torch.device, *, clips: bool = True) -> None:
        from pipeline.engine.optimizer import build_optimizer

        self._model, self._device, self._clips = build_model(config).to(device), device, clips
        self._optimizer = build_optimizer(self._model, config.train)
        self._limit = config.train.grad_clip_norm
        self._autocast = config.train.precision is Precision.bf16

    def train_step(self, batch: Batch) -> None:
        images = batch.images.to(self._device, non_blocking=True)
        tokens = batch.tokens.to(self._device, non_blocking=True)
        ids = batch.caption_ids.to(self._device, non_blocking=True)
        model = self._model
        context: Any = nullcontext()
        if self._autocast:
            context = torch.autocast(self._device.type, torch.bfloat16)
        with context:
            text = model.encode_text(tokens)
            image = model.encode_image(images)
        scale = model.clamp_logit_scale(model.logit_scale)
        loss = clip_loss(image, text, scale, normalize=True, pair_ids=ids, check_inputs=False)
        loss.backward()
        if self._clips:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._limit)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Time(NamedTuple):
    returned_s: float
    """Until the call came back."""
    done_s: float
    """Until the device had done it; on a CPU the same."""
    cpu_s: float
    """Of this process, all threads."""


def timed(step: Step) -> Time:
    _wait()
    cpu, started = time.process_time(), time.perf_counter()
    step()
    returned = time.perf_counter() - started
    _wait()
    done = time.perf_counter() - started
    return Time(returned, done, time.process_time() - cpu)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, list[Time]]:
    """One step of each in turn; the first rounds, which make optimizer states, do not count."""
    times: dict[str, list[Time]] = {name: [] for name in steps}
    for number in range(repeats + 3):
        for name, step in steps.items():
            taken = timed(step)
            if number >= 3:
                times[name].append(taken)
    return times


def rows(times: dict[str, list[Time]], base: str) -> list[list[str]]:
    """Each against `base` in the same round: medians, and quartiles of the ratio."""
    found = []
    for name, taken in times.items():
        columns = [f"{1e3 * statistics.median(values):.4g}" for values in zip(*taken)]
        cells = [name, *columns]
        for number in (1, 2) if not torch.cuda.is_available() else (0, 1):
            ratios = [
                one[number] / other[number] - 1
                for one, other in zip(taken, times[base], strict=True)
            ]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append("" if name == base else f"{middle:+.1%} ({low:+.1%} to {high:+.1%})")
        found.append(cells)
    return found


def header(base: str) -> list[str]:
    ratios = ["done", "CPU"] if not torch.cuda.is_available() else ["returned", "done"]
    columns = ["step", "returned ms", "done ms", "CPU ms"]
    return columns + [f"{ratio} over {base}, quartiles" for ratio in ratios]


def engine_of(config: TrainJob, world: World) -> Any:
    from pipeline.engine.engine import ClipEngine

    return ClipEngine(build_model(config), config, world)


class Counted:
    """An engine that numbers its steps."""

    def __init__(self, engine: Any, batch: Batch) -> None:
        self._engine, self._batch, self._step = engine, batch, 0

    def __call__(self) -> None:
        self._engine.train_step(self._batch, self._step)
        self._step += 1


def against_bare(options: argparse.Namespace, batch_size: int, world: World) -> str:
    arguments = (options.model, batch_size, options.precision)
    config = bench_job(*arguments)
    batch = make_batch(config.model, batch_size, "cc12m", seed=0)
    bare, unclipped = Bare(config, world.device), Bare(config, world.device, clips=False)
    plain = engine_of(config, world)
    averaging = engine_of(bench_job(*arguments, f"train.ema_decay={EMA_DECAY}"), world)
    times = interleaved(
        {
            "bare": lambda: bare.train_step(batch),
            "bare, without clipping": lambda: unclipped.train_step(batch),
            "engine": Counted(plain, batch),
            "engine, with the average of weights": Counted(averaging, batch),
        },
        options.repeats,
    )
    for engine in (plain, averaging):
        engine.close()
    return f"## {options.model}, batch {batch_size}\n\n" + table(
        header("bare"), rows(times, "bare")
    )


def _rank(rank: int, world_size: int, model: str, batch_size: int, repeats: int) -> list[Any]:
    """Seconds of every step with and without the overlap; one engine, which reads it in each."""
    from tests.pipeline.engine.training import world_of

    config = bench_job(model, batch_size * world_size, "fp32")
    config.cluster.ranks_per_node = world_size
    engine = engine_of(config, world_of(rank, world_size))
    batch = make_batch(config.model, batch_size, "cc12m", seed=rank)
    step = Counted(engine, batch)
    taken: list[Any] = []
    for number in range(repeats + 3):
        pair = []
        for overlap in (True, False):
            config.train.overlap_text_gather = overlap
            dist.barrier()
            pair.append(timed(step))
        if number >= 3:
            taken.append([tuple(one) for one in pair])
    engine.close()
    return taken


def overlap(options: argparse.Namespace, batch_size: int) -> str:
    """Of two ranks the slower counts."""
    ranks = run_gloo(_rank, 2, options.model, batch_size, options.repeats, timeout_s=400)
    names = ("train.overlap_text_gather=false", "train.overlap_text_gather=true")
    times: dict[str, list[Time]] = {}
    for name, which in zip(names, (1, 0)):
        rounds = zip(*([pair[which] for pair in rank] for rank in ranks))
        times[name] = [Time(*max(both, key=lambda one: one[1])) for both in rounds]
    title = f"## {options.model}, two gloo ranks of one thread, {batch_size} pairs each\n\n"
    return title + table(header("false"), rows(times, names[0]))


def profile(options: argparse.Namespace, batch_size: int, world: World) -> None:
    """Own time of functions a step, of the engine and of the bare step."""
    config = bench_job(options.model, batch_size, options.precision)
    batch = make_batch(config.model, batch_size, "cc12m", seed=0)
    bare, engine = Bare(config, world.device), engine_of(config, world)
    steps: dict[str, Step] = {"bare": lambda: bare.train_step(batch)}
    steps["engine"] = Counted(engine, batch)
    interleaved(steps, 3)
    for name, step in steps.items():
        print(f"{name}, {options.repeats} steps")
        with cProfile.Profile() as profiler:
            for _ in range(options.repeats):
                step()
        pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(45)
    engine.close()


def keep_freed_memory() -> None:
    """Of glibc: else it returns the top of its heap, or not, as blocks happen to lie, and a step
    with the same calls has 0 or 5,000 page faults, which are 11 ms."""
    libc = ctypes.CDLL(None)
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        if not libc.mallopt(option, 2**30):
            print("this glibc takes no larger thresholds: expect noise of 10%")
            return


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_b_32" if on_gpu else "tiny")
    parser.add_argument("--batch", default="256" if on_gpu else "16,256", help="sizes")
    parser.add_argument("--precision", default="bf16" if on_gpu else "fp32")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    world = one_rank()
    if not on_gpu:
        torch.set_num_threads(options.threads)
        keep_freed_memory()
    sizes = [int(size) for size in options.batch.split(",")]
    if options.profile:
        profile(options, sizes[0], world)
        return
    parts = [
        f"# Host time of a step\n\n{machine()}; {options.precision}, {options.threads} thread(s),"
        f" {options.repeats} steps of each, interleaved. Goal: at most {GOAL:.0%} over bare.\n"
    ]
    parts += [against_bare(options, size, world) for size in sizes]
    if not on_gpu:
        parts.append(overlap(options, sizes[-1]))
    dist.destroy_process_group()
    parts.append(f"Load at the end: {machine().split('load ')[1].split(',')[0]}\n")
    text = "\n".join(parts)
    print(text)
    write(text, options.out)


if __name__ == "__main__":
    main()
