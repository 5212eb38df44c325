"""How a configuration says what is wrong with it: every problem at once."""

from collections.abc import Iterable


class ConfigError(ValueError):
    """Every problem of a configuration at once; each line names the field, the value and the
    fix."""


def below(bounds: Iterable[tuple[str, float, float]]) -> list[str]:
    """A problem for each (field, value, lowest) whose value is below the lowest."""
    return [f"{name} = {value}: must be >= {low}" for name, value, low in bounds if value < low]
