"""Label maps on disk as anatomy to synthesise from.

Axes: D H W voxels in canonical orientation (towards right, anterior, superior), cropped to what is not background.
In: a folder of NIfTI label maps.  Out: LabelMap, held in memory up to a number of bytes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mri_ds.data.nifti import read_label, stem
from mri_ds.data.synthesis.label_table import DESCRIPTION, LabelTable, read_table
from mri_ds.errors import InputError

MAX_SEATS = 1024  # voxels per class that a crop may be centred on


@dataclass(frozen=True)
class LabelMap:
    """One anatomy. `rows` has a border of one voxel of background, so that what lies outside can be looked up too."""

    name: str
    rows: torch.Tensor  # (D + 2, H + 2, W + 2) uint8 or int16: which of `ids` a voxel has
    ids: np.ndarray  # (n,) the file's own, ascending, 0 first
    class_of: np.ndarray  # (n,) int16, class of the segmentation of each id
    tissue_of: np.ndarray  # (n,) int64, tissue of each id, 0 to T - 1, 0 that of the background; one tissue, one Gaussian
    spacing_mm: np.ndarray  # (3,)
    seats: list[np.ndarray]  # for each class but 0 that occurs, some of its voxels, (k, 3) in D H W

    @property
    def size_mm(self) -> np.ndarray:
        """Extent (3,) of D H W without the border."""
        return (np.array(self.rows.shape) - 2) * self.spacing_mm

    @property
    def num_tissues(self) -> int:
        return int(self.tissue_of.max()) + 1

    @property
    def num_bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size() + sum(s.nbytes for s in self.seats)


class LabelMaps:
    """The label maps of one folder, by number. Keeps the last used in memory, up to `cache_bytes`."""

    def __init__(self, folder: str | Path, *, cache_bytes: int = 2**30) -> None:
        """Raises InputError for a folder that is not there or holds no NIfTI file, and for a broken labels.yaml."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError("no such folder", where=folder, fix="give a folder of NIfTI label maps")
        self.paths = sorted(path for path in self.folder.iterdir() if stem(path) is not None and path.is_file())
        if not self.paths:
            raise InputError("holds no label map", where=folder, fix="put NIfTI label maps there (.nii or .nii.gz)")
        self.table: LabelTable = read_table(self.folder)
        self._cache: OrderedDict[int, LabelMap] = OrderedDict()
        self._free_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        return stem(self.paths[number]) or self.paths[number].name

    def __getitem__(self, number: int) -> LabelMap:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        loaded = self._cache[number] = load_label_map(self.paths[number], self.table)
        self._free_bytes -= loaded.num_bytes
        while self._free_bytes < 0 and self._cache:
            self._free_bytes += self._cache.popitem(last=False)[1].num_bytes
        return loaded


def load_label_map(path: Path, table: LabelTable) -> LabelMap:
    """Reads one map. Raises InputError for what `read_label` refuses, and for a map in which no class of the table occurs."""
    volume = read_label(path)
    orientation = nib.orientations.io_orientation(volume.affine)
    voxels = nib.orientations.apply_orientation(volume.voxels, orientation)
    spacing = volume.spacing_mm[np.argsort(orientation[:, 0])]
    present = np.bincount(voxels.ravel()) > 0
    present[0] = True
    ids = np.flatnonzero(present)
    class_of, tissue_of = table.rows(ids.tolist())
    if not class_of.any():
        some = ", ".join(map(str, ids[1:9])) or "none but 0"
        fix = f"say in {DESCRIPTION} beside it which ids make which class"
        raise InputError(f"no id of it ({some}) has a class", where=path, fix=fix)
    row_of = np.zeros(len(present), dtype=np.uint8 if len(ids) <= 256 else np.int16)
    row_of[ids] = np.arange(len(ids))
    rows = row_of[_cropped(voxels)]
    seats = _seats(class_of[rows])
    return LabelMap(
        stem(path) or path.name, torch.from_numpy(np.pad(rows, 1)), ids, class_of, tissue_of, np.asarray(spacing), seats
    )


def _cropped(voxels: np.ndarray) -> np.ndarray:
    """The smallest box that holds every voxel that is not 0 (there is one: some id has a class, and 0 never has)."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(voxels.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(filled[0], filled[-1] + 1))
    return voxels[tuple(box)]


def _seats(classes: np.ndarray) -> list[np.ndarray]:
    """For each class but 0 that occurs, at most MAX_SEATS of its voxels, spread evenly in memory order; (k, 3) int32 each."""
    flat = classes.ravel()
    order = np.argsort(flat, kind="stable")  # voxels by class, each class in memory order
    ends = np.cumsum(np.bincount(flat))
    seats = []
    for first, end in pairwise(ends):
        if end > first:
            chosen = order[first : end : -(-(end - first) // MAX_SEATS)]
            seats.append(np.stack(np.unravel_index(chosen, classes.shape), axis=1).astype(np.int32))
    return seats
