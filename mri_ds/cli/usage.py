"""A command line that cannot be understood, as one line that says what would be.

In: what typer raises for a wrong option, command or value.  Out: an InputError.
"""

from typing import Any

import typer

from mri_ds.config.spelling import nearest, nearest_key
from mri_ds.errors import InputError

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, or that of the click inside newer versions of typer


def wrong_usage(err: Any) -> InputError:
    """Of a UsageError. Names command, option or command, and the nearest there is."""
    context = err.ctx
    path = context.command_path if context is not None else "mri-ds"
    see = f"see `{path} --help`"
    message = str(err.format_message()).strip()
    if option := getattr(err, "option_name", None) if "o such option" in message else None:
        known = [name for param in context.command.params if not getattr(param, "hidden", False) for name in param.opts]
        return InputError(f"no such option {option!r}", where=path, fix=_fix(option, known, see))
    commands = getattr(context.command, "commands", {}) if context is not None else {}
    if commands and message.startswith("No such command"):
        name = message.split("'")[1]
        return InputError(f"no such command {name!r}", where=path, fix=nearest_key(name, list(commands)))
    return InputError(message[:1].lower() + message[1:], where=path, fix=see)


def _fix(word: str, known: list[str], see: str) -> str:
    fix = nearest(word, known)
    return fix if fix.endswith("?") else see
