"""What `python -m asag` and `python -m research` have in common: the first word chooses a command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence


def run(program: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run the command that `argv` begins with; `commands` maps its name to (module, what it does).

    The module is imported only now, and its `main` gets the rest of `argv`. Returns the exit status: 2, with the list
    of commands, where there is no such command.
    """
    if argv and argv[0] in commands:
        return importlib.import_module(commands[argv[0]][0]).main(list(argv[1:]))
    asked_for_help = bool(argv) and argv[0] in ("-h", "--help")
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in commands.items())
    usage = f"usage: python -m {program} COMMAND [options]\n\n{listed}"
    if argv and not asked_for_help:
        usage = f"{program}: there is no command {argv[0][:40]!r}\n{usage}"
    print(usage, file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2
