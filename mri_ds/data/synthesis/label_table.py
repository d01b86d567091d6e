"""What the ids of a label map mean: which share their intensities, and which class of the segmentation each of them is.

In: labels.yaml beside the label maps, or without one FreeSurfer's ids.  Out: LabelTable, and for the ids of one map their rows.
labels.yaml:
    classes: {white_matter: [2, 41], cortex: [3, 42]}   # in order; class 0, background, is every id that stands nowhere
    same_intensity: [[2, 41], [3, 42]]                  # ids of one tissue; an id that stands nowhere is a tissue of its own
    flip: true                                          # left and right may be exchanged: no class is of one side only
Source: Billot et al. 2023 (SynthSeg), section 3.1; ids as in FreeSurfer's colour table, those of Billot's label maps beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mri_ds.config.validation import read_section
from mri_ds.data.layouts.text import read_yaml
from mri_ds.errors import InputError

DESCRIPTION = "labels.yaml"
FORM = "`classes: {NAME: [ID, ...], ...}`"
BACKGROUND = "background"
# left and right of one tissue, lesions, vessels and two that stand for both sides in Billot's maps among them
SIDES = [
    (2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (9, 48), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54),
    (25, 57), (26, 58), (28, 60), (30, 62), (136, 163), (137, 164),
]  # fmt: skip
FREESURFER = {
    "white_matter": [2, 41, 25, 57, 77],  # lesions look different and are labelled as what they lie in
    "cortex": [3, 42],
    "lateral_ventricle": [4, 43],
    "inferior_lateral_ventricle": [5, 44],
    "cerebellum_white_matter": [7, 46],
    "cerebellum_cortex": [8, 47],
    "thalamus": [9, 48, 10, 49],
    "caudate": [11, 50],
    "putamen": [12, 51],
    "pallidum": [13, 52],
    "third_ventricle": [14],
    "fourth_ventricle": [15],
    "brain_stem": [16],
    "hippocampus": [17, 53],
    "amygdala": [18, 54],
    "accumbens": [26, 58],
    "ventral_dc": [28, 60],
}


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid")
    classes: dict[str, list[int]] = Field(min_length=1)
    same_intensity: list[list[int]] = []
    flip: bool = False


@dataclass(frozen=True)
class LabelTable:
    """classes: names, background first; class_of, tissue_of: id -> class number, id -> the id that stands for its tissue."""

    classes: list[str]
    class_of: Mapping[int, int]
    tissue_of: Mapping[int, int]
    may_flip: bool

    def rows(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers (n,) int16 and tissue numbers (n,) int64, 0 to T - 1, of the ids of one map.

        >>> table = LabelTable(["background", "white"], {2: 1, 41: 1}, {41: 2}, may_flip=True)
        >>> [row.tolist() for row in table.rows([0, 2, 24, 41])]
        [[0, 1, 0, 1], [0, 1, 2, 1]]
        """
        tissues = [self.tissue_of.get(int(i), int(i)) for i in ids]
        classes = [self.class_of.get(int(i), 0) for i in ids]
        return np.array(classes, dtype=np.int16), np.unique(tissues, return_inverse=True)[1]


def read_table(folder: Path) -> LabelTable:
    """The table of a folder of label maps; FreeSurfer's where it has no labels.yaml. Raises InputError for a broken one."""
    where = Path(folder) / DESCRIPTION
    if not where.is_file():
        return _table(FREESURFER, SIDES, may_flip=True)
    description = read_section(_Description, read_yaml(where, FORM), where=str(where))
    for key, groups in (("classes", description.classes.values()), ("same_intensity", description.same_intensity)):
        listed = [i for group in groups for i in group]
        if double := next((i for i in listed if listed.count(i) > 1), None):
            raise InputError(f"{key} has id {double} twice", where=where, fix="list it once")
        if any(not 0 < i < 2**15 for i in listed):
            raise InputError(f"{key} has an id outside 1 to 32767", where=where, fix="0 is background, and stands nowhere")
    if BACKGROUND in description.classes:
        raise InputError(f"{BACKGROUND!r} is class 0 by itself", where=where, fix="take it out of classes")
    return _table(description.classes, description.same_intensity, may_flip=description.flip)


def _table(classes: Mapping[str, Sequence[int]], same: Sequence[Sequence[int]], *, may_flip: bool) -> LabelTable:
    class_of = {i: number for number, ids in enumerate(classes.values(), start=1) for i in ids}
    tissue_of = {i: min(group) for group in same if group for i in group}
    return LabelTable([BACKGROUND, *classes], class_of, tissue_of, may_flip)
