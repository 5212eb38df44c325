"""An exception and what lies behind it, as one message for the user."""

from __future__ import annotations


def error_chain(error: BaseException) -> str:
    """The message of `error` and, a line each, those of the exceptions that caused it; equal
    messages once, without tracebacks.

    For Hydra's errors: the first names the override, the one behind it what is wrong with it. The
    search path that Hydra adds is left out.
    """
    messages = [str(error).split("\nConfig search path")[0].strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        messages.append(str(error).strip().split("\n")[0])
    return "\n  ".join(dict.fromkeys(messages))
