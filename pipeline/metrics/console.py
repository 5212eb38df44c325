"""Progress on the console: a bar on a terminal, else one line per log step."""

from __future__ import annotations

import atexit
import math
import sys

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Console:
    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Progress | None = None

    def start(self, step: int) -> None:
        """Set the bar to `step`; called again after a roll-back."""
        if self._bar is None and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}", markup=False),
                console=RichConsole(stderr=True),
            )
            self._task = self._bar.add_task("train", total=self._steps, shown="")
            self._bar.start()
            atexit.register(self.close)  # else a run that fails leaves a terminal without cursor
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, line: dict[str, float]) -> None:
        left = time_left((self._steps - step) * line["perf/step_s"])
        shown = "  ".join([*shown_metrics(line), left])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            print(f"step {step}/{self._steps}  {shown}", flush=True)

    def tell(self, text: str) -> None:
        """Print a separate line; rich moves the bar below it."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def shown_metrics(line: dict[str, float]) -> list[str]:
    """The metrics of a metrics.jsonl line that the console shows."""
    shown = [f"loss {line['train/loss']:.3f}"]
    if "train/top1_image_to_text" in line:
        top1 = (line["train/top1_image_to_text"] + line["train/top1_text_to_image"]) / 2
        shown.append(f"top-1 {100 * top1:.1f} %")
    shown.append(f"scale {line['train/logit_scale']:.1f}")
    shown.append(f"{line['perf/samples_per_second']:,.0f} samples/s")
    if "perf/mfu" in line:
        shown.append(f"MFU {100 * line['perf/mfu']:.1f} %")
    if line["train/skipped_steps"]:
        shown.append(f"{line['train/skipped_steps']:.0f} skipped")
    return shown


def time_left(seconds: float) -> str:
    """ "3 d 4 h left", "2 h 10 min left", "12 min left", "40 s left"."""
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return f"{math.ceil(seconds)} s left"
    if minutes < 60:
        return f"{minutes} min left"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min left"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h left"
