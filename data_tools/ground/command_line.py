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
    work: Callable[[Settings, list[str]], int],
) -> int:
    """Answer --help, refuse a bad command line with exit code 2, else return what `work` returns;
    Ctrl-C gives 130 and no traceback."""
    try:
        if asks_for_help(arguments):
            with suppress(BrokenPipeError):  # `| head` has read enough
                print(help_text(command), flush=True)
            return exit_codes.DONE
        try:
            settings, rest = parse(command, arguments)
        except Refused as error:
            print(f"error: {error}", file=sys.stderr)
            return exit_codes.REFUSED
        return work(settings, rest)
    except KeyboardInterrupt:
        more = "; the same command goes on from here" if command.goes_on else ""
        print(f"stopped{more}", file=sys.stderr)
        return exit_codes.INTERRUPTED


def asks_for_help(arguments: Iterable[str]) -> bool:
    return any(word in ("-h", "--help") for word in arguments)
