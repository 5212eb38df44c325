"""Renders SVG to PNG, in several processes.

This module imports little, because each worker process imports it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import resvg_py

CHUNK = 250
TIMEOUT_S = 300.0


def render(svg: str, side: int) -> bytes:
    """A PNG of `side` x `side` pixels on white; empty bytes for an SVG that cannot be rendered."""
    try:
        return bytes(
            resvg_py.svg_to_bytes(
                svg_string=svg, width=side, background="#ffffff", skip_system_fonts=True
            )
        )
    except ValueError:
        return b""


def render_all(
    svgs: Sequence[str], side: int, processes: int, advance: Callable[[int], None]
) -> list[bytes]:
    """PNGs in the order of `svgs`; `advance` is called with the number of each chunk that is done.

    It uses processes and not threads, because resvg_py holds the GIL (2 threads: 1.26 times the
    speed of one).
    """
    chunks = [svgs[start : start + CHUNK] for start in range(0, len(svgs), CHUNK)]
    pngs: list[bytes] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for part in pool.map(_render_chunk, chunks, [side] * len(chunks), timeout=TIMEOUT_S):
            pngs += part
            advance(len(part))
    return pngs


def _render_chunk(svgs: Sequence[str], side: int) -> list[bytes]:
    return [render(svg, side) for svg in svgs]
