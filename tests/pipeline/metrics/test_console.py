"""Plain lines away from a terminal, a bar on one, and times that people read."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.metrics.console import Console, shown_metrics, time_left

LINE = {
    "train/loss": 5.1234,
    "train/logit_scale": 14.285,
    "train/skipped_steps": 0,
    "perf/samples_per_second": 12345.6,
    "perf/step_s": 30.0,
}
SCRIPT = f"""
from pipeline.metrics.console import Console
console = Console(270)
console.start(0)
console.show(10, {LINE!r})
console.tell("rank 13: [slow]")
console.close()
"""


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s left"),
        (39.2, "40 s left"),
        (61, "2 min left"),
        (59 * 60, "59 min left"),
        (59 * 60 + 1, "1 h 0 min left"),
        (2 * 3600 + 600, "2 h 10 min left"),
        (47 * 3600, "47 h 0 min left"),
        (76 * 3600, "3 d 4 h left"),
    ],
)
def test_time_left(seconds, text):
    assert time_left(seconds) == text


def test_a_plain_line(capsys):
    console = Console(270)
    console.start(0)
    console.show(10, LINE)
    console.tell("rank 13: slow")
    console.close()
    captured = capsys.readouterr()
    assert captured.out == (
        "step 10/270  loss 5.123  scale 14.3  12,346 samples/s  2 h 10 min left\n"
    )
    assert captured.err == "rank 13: slow\n"


def test_what_is_known_is_shown():
    more = {
        "train/top1_image_to_text": 0.1,
        "train/top1_text_to_image": 0.2,
        "perf/mfu": 0.4567,
        "train/skipped_steps": 2,
    }
    assert shown_metrics(LINE | more) == [
        "loss 5.123",
        "top-1 15.0 %",
        "scale 14.3",
        "12,346 samples/s",
        "MFU 45.7 %",
        "2 skipped",
    ]


def test_a_terminal_gets_a_bar_and_its_cursor_back():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "10/270" in text and "2 h 10 min left" in text and "rank 13: [slow]" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # shown after it was hidden
