"""The error that a configuration raises: every problem at once."""


class ConfigError(ValueError):
    """Every problem of a configuration at once; each line names the field, the value and the
    fix."""
