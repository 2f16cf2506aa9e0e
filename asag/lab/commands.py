"""What `python -m asag` and `python -m research` have in common: the first word chooses a command."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from asag.lab.arguments import Arguments


class Command(NamedTuple):
    """The module whose `main` is run, how its arguments are read, what it does, and what brings the packages for it."""

    module: str
    read: Callable[[Arguments], Namespace]
    text: str
    needs: str


def run(program: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    """Run the command that `argv` begins with; its `main` gets the rest.

    The rest is read first, so that --help and mistakes answer before the module, and torch with it, is imported.
    Returns the exit status: 2 where there is no such command, which is named beside the others, or where a package is
    missing, which one line names.
    """
    if not argv or argv[0] not in commands:
        return _list(program, commands, argv)
    command = commands[argv[0]]
    command.read(list(argv[1:]))
    try:
        status: int = importlib.import_module(command.module).main(list(argv[1:]))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "asag", "research"):
            raise
        print(f"python -m {program} {argv[0]}: the package {missing} is missing: {command.needs}", file=sys.stderr)
        return 2
    return status


def _list(program: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    asked_for_help = bool(argv) and argv[0] in ("-h", "--help")
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:{width}}  {command.text}" for name, command in commands.items())
    usage = f"usage: python -m {program} COMMAND [options]\n\n{listed}\n\nCOMMAND --help lists its options."
    if argv and not asked_for_help:
        usage = f"{program}: there is no command {argv[0][:40]!r}; allowed: {', '.join(commands)}\n{usage}"
    print(usage, file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2
