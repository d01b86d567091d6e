"""Writes the table of commands in mri_ds/cli/README.md from the commands themselves: `python tools/docs/commands.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "mri_ds/cli/README.md"
BEGIN, END = "<!-- commands: python tools/docs/commands.py -->\n", "<!-- end of commands -->\n"


def main() -> None:
    README.write_text(with_table(README.read_text(), table()))


def table() -> str:
    sys.path.insert(0, str(ROOT))
    from mri_ds.cli.main import app

    rows = [_row(" ".join(name), command) for name, command in _walk(typer.main.get_command(app))]
    return "\n".join(["| command | takes | options | does |", "|---|---|---|---|", *rows]) + "\n"


def with_table(text: str, made: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + made + END + after


def _walk(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for own, below in command.commands.items():
        if hasattr(below, "commands"):
            yield from _walk(below, (*name, own))
        else:
            yield (*name, own), below


def _row(name: str, command: Any) -> str:
    params = [param for param in command.params if not getattr(param, "hidden", False)]
    options = [param.opts[0] for param in params if param.opts[0].startswith("--")]
    takes = [param.metavar or param.name.upper() for param in params if not param.opts[0].startswith("-")]
    told = " ".join(f"`{option}`" for option in options if option not in ("--json", "--help"))
    return f"| `mri-ds {name}` | {' '.join(takes)} | {told} | {command.help.strip().splitlines()[0]} |"


if __name__ == "__main__":
    main()
