"""The numbers nearest to a wrong one that would be right, for the fix in a problem's text."""

from __future__ import annotations

import math
from collections.abc import Iterable


def nearest_divisors(number: int, size: int) -> list[int]:
    """The largest divisor of `number` below `size` and the smallest above it, where there is
    one."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    divisors = sorted({*small, *(number // divisor for divisor in small)})
    lower = [divisor for divisor in divisors if divisor < size][-1:]
    return lower + [divisor for divisor in divisors if divisor > size][:1]


def nearest_multiples(number: int, step: int) -> list[int]:
    """The multiples of `step` just below and just above `number`, of those above 0."""
    lower = number // step * step
    return [multiple for multiple in (lower, lower + step) if multiple]


def either(numbers: Iterable[int]) -> str:
    """ "16 or 18"."""
    return " or ".join(map(str, numbers))
