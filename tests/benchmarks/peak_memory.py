"""Peak resident memory of a call, from Linux's high-water mark."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from typing import Any


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        found = re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}; peak memory needs Linux")
    return int(found[1]) * 1024


def peak_extra_bytes(call: Callable[[], Any]) -> int:
    """How far resident memory rises above where it was, at most, while ``call`` runs.

    Raises OSError where the high-water mark cannot be reset (no Linux, or a sandbox without
    /proc/self/clear_refs).
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the call finds its memory among what was freed
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM := VmRSS
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return peak - before
