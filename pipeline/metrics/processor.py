"""Measures a run and writes its metrics."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import TrainJob
from pipeline.distributed.world import World
from pipeline.metrics.alerts import InputBound, LogitScale, Stragglers
from pipeline.metrics.diagnosis import (
    CollapsedFeatures,
    EqualCaptions,
    NoGradient,
    RestingLoss,
    few_steps_per_epoch,
)
from pipeline.metrics.interval import StepBuffer, TakenStep, Totals
from pipeline.metrics.outputs import Outputs
from pipeline.metrics.peaks import peak_of
from pipeline.metrics.skipped import SkippedSteps
from pipeline.state import Interval, StepMetrics, TrainState


class MetricsProcessor:
    """Between log steps it keeps references and never waits for the device; `log` reduces once.

    Collective: the constructor, start and log; what fails on one rank there raises on all. Opened
    before the model is, so that a missing package or a folder that cannot be written costs no
    device time.
    """

    def __init__(self, config: TrainJob, world: World, num_samples: int = 0) -> None:
        """num_samples: of one epoch; 0 where the data do not say, as in a stream."""
        self._world = world
        self._global_batch_size = config.train.global_batch_size
        self._buffer = StepBuffer(world)
        self._skips = SkippedSteps(Path(config.run_dir), world)
        self._num_skipped: int | None = None
        self._peak_tflops = peak_of(world.device, config.train.precision)
        self._input_bound = InputBound(config)
        self._stragglers = Stragglers(config.cluster.ranks_per_node)
        self._logit_scale = LogitScale(config)
        self._resting_loss = RestingLoss(config)
        self._collapsed = CollapsedFeatures(config)
        self._equal_captions = EqualCaptions()
        self._no_gradient = NoGradient()
        self._outputs: Outputs | None = None
        self._mark = time.monotonic()
        with world.raise_on_all_ranks("open the metrics of the run"):
            if world.is_main:
                self._outputs = Outputs(config, world)
        few_steps = few_steps_per_epoch(num_samples, config.train.global_batch_size)
        if num_samples and few_steps:
            world.tell(few_steps)

    def start(self, state: TrainState) -> None:
        """After the checkpoint is loaded, and again after a roll-back: lines of steps that come
        again are dropped, and the clock starts."""
        with self._world.raise_on_all_ranks("go on with the metrics of the run"):
            skipped_before = self._skips.start(state)
            if self._outputs is not None:
                last = self._outputs.start(state)
                if self._num_skipped is None:
                    self._num_skipped = _skips_before(last, skipped_before)
        self._buffer.clear()
        self._mark = time.monotonic()

    def record_step(
        self,
        keys: list[str],
        step: StepMetrics,
        *,
        waited_s: float,
        num_replaced: int,
        flops_per_sample: float,
        state: TrainState,
    ) -> None:
        """Record this rank's part of a step that was queued on the device; waits for nothing.

        keys: of the rank's samples. waited_s: seconds that it waited for the batch. num_replaced:
        number of samples that replace undecodable ones. flops_per_sample: of one pair's forward
        pass, at its text length. state: after the step.
        """
        samples_before = state.samples_seen - self._global_batch_size
        self._buffer.add(
            TakenStep(state.step, samples_before, keys, step),
            waited_s=waited_s,
            num_replaced=num_replaced,
            flops=3 * flops_per_sample * len(keys),  # the backward costs two forwards
        )

    def log(self, state: TrainState) -> Interval:
        """Reduce the steps since the last call over all ranks, with one all-reduce; rank 0 writes
        the result to every output. Every rank returns the same Interval."""
        steps = self._buffer.steps
        if not steps:
            return Interval(first_step=state.step)
        totals = self._buffer.reduce()  # waits for the device: the clock counts finished work
        now = time.monotonic()
        elapsed = max(now - self._mark, 1e-9)
        self._skips.write(
            [step for step, skipped in zip(steps, totals.skipped, strict=True) if skipped]
        )
        if self._outputs is not None:
            self._num_skipped = (self._num_skipped or 0) + sum(totals.skipped)
            line = self._line(state, totals, elapsed, steps[-1].metrics.lr)
            self._outputs.write(state.step, line)
            self._outputs.console.show(state.step, line)
            self._alert(state.step, totals, line)
        first_step = steps[0].step - 1
        self._buffer.clear()
        self._mark = now
        return Interval(first_step=first_step, losses=totals.losses, skipped=totals.skipped)

    def log_eval(self, state: TrainState, results: dict[str, dict[str, Any]]) -> None:
        """Scores as eval/<data set>/<metric>, and retrieval examples as pictures. Not
        collective."""
        if self._outputs is None or not results:
            return
        scores = {
            f"eval/{name}/{metric}": value
            for name, result in results.items()
            for metric, value in result.items()
            if isinstance(value, (int, float))
        }
        seen: dict[str, float] = {"train/samples_seen": state.samples_seen}
        self._outputs.write(state.step, scores | seen)
        self._outputs.write_examples(state.step, results)

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Wrap an evaluation or a checkpoint in this: its time does not count as step time."""
        stopped = time.monotonic()
        yield
        self._mark += time.monotonic() - stopped

    def close(self) -> None:
        if self._outputs is not None:
            self._outputs.close()

    def _line(
        self, state: TrainState, totals: Totals, elapsed: float, lr: float
    ) -> dict[str, float]:
        """train/loss is the loss of the global batch at this step; train/loss_mean that of the
        interval's steps that were not skipped."""
        num_steps, ranks = len(totals.losses), self._world.world_size
        applied = [
            loss for loss, skip in zip(totals.losses, totals.skipped, strict=True) if not skip
        ]
        samples_per_second = num_steps * self._global_batch_size / elapsed
        tflops_per_rank = totals.flops / elapsed / ranks / 1e12
        line: dict[str, float] = {
            "train/loss": totals.losses[-1],
            "train/loss_mean": statistics.fmean(applied) if applied else math.nan,
            "train/logit_scale": math.exp(totals.logit_scale),
            "train/lr": lr,
            **_grad_norms(totals),
            **_named(("train/top1_image_to_text", "train/top1_text_to_image"), totals.top1),
            **_named(("train/mean_cosine_image", "train/mean_cosine_text"), totals.mean_cosines),
            "train/skipped_steps": self._num_skipped or 0,
            "train/rollbacks": state.rollbacks,
            "train/samples_seen": state.samples_seen,
            "perf/samples_per_second": samples_per_second,
            "perf/samples_per_second_per_rank": samples_per_second / ranks,
            "perf/step_s": elapsed / num_steps,
            "perf/tflops_per_rank": tflops_per_rank,
            "perf/memory_gib": max(totals.memory_gib),
            "perf/towers_s_median": statistics.median(totals.towers_s),
            "perf/towers_s_slowest": max(totals.towers_s),
            "data/wait_s": totals.wait_s,
            "data/wait_share": totals.wait_s * num_steps / elapsed,
            "data/equal_captions": totals.equal_captions,
            "data/replaced_samples": totals.num_replaced,
            "data/key_checksum": totals.key_checksum,
        }
        if self._peak_tflops is not None:
            line["perf/mfu"] = tflops_per_rank / self._peak_tflops
        return line

    def _alert(self, step: int, totals: Totals, line: dict[str, float]) -> None:
        assert self._outputs is not None
        warnings = [
            self._input_bound.check(line["data/wait_share"]),
            self._logit_scale.check(step, totals.logit_scale),
            *self._stragglers.check(totals.towers_s),
            self._resting_loss.check(step, line["train/loss_mean"]),
            *self._collapsed.check(step, totals.mean_cosines),
            self._equal_captions.check(step, totals.equal_captions),
            *self._no_gradient.check(step, totals.grad_norms),
        ]
        for text in warnings:
            if text is not None:
                self._outputs.console.tell(text)


def _named(names: tuple[str, str], values: list[float]) -> dict[str, float]:
    """The two values by metric name; nothing where they were not measured."""
    return dict(zip(names, values, strict=True)) if values else {}


def _grad_norms(totals: Totals) -> dict[str, float]:
    """Gradient norms by metric name; those of the towers only where they are known."""
    image, text, both = totals.grad_norms
    norms = {"train/grad_norm": both}
    for name, value in (("train/grad_norm_image", image), ("train/grad_norm_text", text)):
        if not math.isnan(value):
            norms[name] = value
    return norms


def _skips_before(last: dict[str, float], samples_before: list[int]) -> int:
    """Skipped steps before the resume point: those counted in the last kept line, plus those
    between that line and the checkpoint."""
    counted = int(last.get("train/skipped_steps", 0))
    return counted + sum(before >= last.get("train/samples_seen", 0) for before in samples_before)
