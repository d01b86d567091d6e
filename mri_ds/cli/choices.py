"""Options that take one of a few words: said wrongly they name option, words and the nearest one; shells complete them."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import typer

from mri_ds.config import nearest
from mri_ds.errors import InputError

Word = TypeVar("Word", str, str | None)


def one_of(word: Word, known: Collection[str], option: str, what: str = "") -> Word:
    """`word` itself, None too. `what` it is called where it is wrong; by default as the option.

    >>> one_of("small", ["small", "base"], "--scale")
    'small'
    """
    if word is not None and word not in known:
        told = f"unknown {what or option.lstrip('-').replace('-', ' ')} {word!r}; there are {', '.join(known)}"
        raise InputError(told, where=option, fix=nearest(word, list(known)))
    return word


def some_of(text: str, known: Collection[str], option: str, what: str = "") -> list[str]:
    """Words separated by commas, each one of `known`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [one_of(word, known, option, what or option.lstrip("-").rstrip("s")) for word in words]


def option_of(name: str, known: Collection[str], more: str = "") -> Any:
    """An option of typer's that takes one of `known`, which its help lists, followed by `more`."""
    return typer.Option(name, autocompletion=completes(known), help=f"One of {', '.join(known)}.{more}")


def completes(known: Collection[str]) -> Callable[[str], list[str]]:
    """What a shell is told when TAB is pressed."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]
