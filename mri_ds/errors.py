"""The one exception for input a user can mend: a file, a value, a fix.

The command line prints it as a single line and exits with code 2; anything else is a failure of ours (code 1).
"""

from pathlib import Path


class InputError(ValueError):
    """Bad input: where it is, what is wrong with it, and how to mend it.

    >>> str(InputError("image is 2-D (shape 64 x 64)", where="a.nii.gz", fix="give a 3-D volume"))
    'a.nii.gz: image is 2-D (shape 64 x 64). Fix: give a 3-D volume.'
    """

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return _Said, (str(self),)  # between processes the text travels as it is

    def __init__(self, what: str, *, where: str | Path = "", fix: str = "") -> None:
        text = f"{where}: {what}" if str(where) else what
        text = " ".join(text.split()).rstrip(".") + "."
        super().__init__(f"{text} Fix: {fix}{'' if fix.endswith(('.', '?')) else '.'}" if fix else text)


class CorruptError(InputError):
    """Stored bytes that are not those that were written: a checksum does not match. The only bad input a reader may skip."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return _SaidCorrupt, (str(self),)


class RunError(RuntimeError):
    """A run that cannot go on for a reason outside of the program, as a full disk: one line, exit code 1."""


class _Said(InputError):
    """An InputError that came from another process, its text ready-made."""

    def __init__(self, text: str) -> None:
        ValueError.__init__(self, text)


class _SaidCorrupt(CorruptError):
    """A CorruptError that came from another process."""

    def __init__(self, text: str) -> None:
        ValueError.__init__(self, text)
