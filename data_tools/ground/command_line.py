"""What every command does around its work: --help, refusals, Ctrl-C, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from data_tools.ground import exit_codes
from data_tools.ground.help_text import help_text
from data_tools.ground.settings import Command, Refused, Settings, parse


def run(
    command: Command[Settings],
    arguments: list[str],
    work: Callable[[Settings, list[str]], int | None],
) -> int:
    """Answer --help, refuse a bad command line or do the work; returns the exit code, `work`'s own
    where it gives one. Errors that the command knows are told in a line, Ctrl-C in a word."""
    try:
        if asks_for_help(arguments):
            with suppress(BrokenPipeError):  # `| head` has read enough
                print(help_text(command), flush=True)
            return exit_codes.DONE
        return work(*parse(command, arguments)) or exit_codes.DONE
    except (Refused, *command.refused_by) as error:  # type: ignore[misc]  # mypy: of any length
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    except command.failed_by as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.FAILED
    except KeyboardInterrupt:
        more = "; the same command goes on from here" if command.goes_on else ""
        print(f"stopped{more}", file=sys.stderr)
        return exit_codes.INTERRUPTED


def asks_for_help(arguments: Iterable[str]) -> bool:
    return any(word in ("-h", "--help") for word in arguments)
