"""Misspelt words and the ones that were meant. Imports nothing that takes time: the command line asks it about its options."""

import difflib
from collections.abc import Sequence

FEW = 16  # names that an error line can list beside the nearest one


def nearest(word: str, known: Sequence[str]) -> str:
    """A fix for a misspelt word: its closest match, or all that is allowed."""
    match = closest(word, known)
    return f"did you mean {match!r}?" if match else f"use one of {', '.join(sorted(known))}"


def nearest_key(word: str, known: Sequence[str]) -> str:
    """As `nearest`; beside the closest match the others that there are, where an eye can go through them."""
    fix = nearest(word, known)
    return f"{fix} There are {', '.join(sorted(known))}" if fix.endswith("?") and 1 < len(known) <= FEW else fix


def closest(word: str, known: Sequence[str]) -> str | None:
    """The closest word, however it is written: BF16 is bf16."""
    written = {name.lower(): name for name in reversed(known)}
    found = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(word.lower(), written, n=1)
    return written.get(found[0].lower(), found[0]) if found else None
