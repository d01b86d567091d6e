"""File names of BIDS: sub-01_ses-pre_acq-hires_run-2_T1w.nii.gz -> entities and suffix.

Source: BIDS 1.10, "Filenames" and "Entities".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mri_ds.data.nifti import stem

ENTITY = re.compile(r"(?P<key>[a-zA-Z]+)-(?P<value>[a-zA-Z0-9+]+)")
WHO = ("sub", "ses", "run")  # entities that say which scan, not of what kind
DATATYPE = "anat"


@dataclass(frozen=True)
class BidsFile:
    """One image: its entities in the order of its name, and its suffix."""

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def visit(self) -> tuple[str, str]:
        """Subject and session ("": none)."""
        return self.entities["sub"], self.entities.get("ses", "")

    @property
    def run(self) -> str:
        return self.entities.get("run", "")

    @property
    def kind(self) -> str:
        """What the name says beside who and when: "T1w", "acq-hires_T1w". This is a channel's name."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items() if key not in WHO), self.suffix])


def parse(path: Path) -> BidsFile | None:
    """None for a name that is not BIDS'.

    >>> parse(Path("sub-01_ce-gd_run-2_T1w.nii.gz")).kind
    'ce-gd_T1w'
    """
    name = stem(path)
    *pairs, suffix = (name or "").split("_")
    entities = entities_of(pairs)
    if entities is None or "sub" not in entities or not suffix.isalnum():
        return None
    return BidsFile(path, entities, suffix)


def entities_of(pairs: list[str]) -> dict[str, str] | None:
    """["sub-01", "run-2"] -> {"sub": "01", "run": "2"}; None where one is no pair or comes twice."""
    matches = [ENTITY.fullmatch(pair) for pair in pairs]
    entities = {match["key"]: match["value"] for match in matches if match}
    return entities if len(entities) == len(pairs) else None


def anat_folders(root: Path) -> list[Path]:
    """The folders sub-*/anat and sub-*/ses-*/anat that there are, sorted."""
    return sorted(path for how in ("", "ses-*/") for path in root.glob(f"sub-*/{how}{DATATYPE}") if path.is_dir())


def images_of(root: Path) -> Iterator[tuple[Path, BidsFile | None]]:
    """Every NIfTI file of those folders, with what its name says; None where its name is not that of its folders."""
    for folder in anat_folders(root):
        for path in sorted(folder.iterdir()):
            if stem(path) is not None:
                file = parse(path)
                yield path, file if file and _stands_right(file, folder.relative_to(root).parts) else None


def _stands_right(file: BidsFile, parts: tuple[str, ...]) -> bool:
    session = parts[1].removeprefix("ses-") if len(parts) == 3 else ""
    return file.visit == (parts[0].removeprefix("sub-"), session)
