"""Label maps among the derivatives of a BIDS dataset: derivatives/<pipeline>/sub-*/[ses-*/]anat/*_dseg or *_mask.

A task is named by the entities label, desc, seg and atlas of its files (`label-lesion_mask`: "lesion"), or else by their suffix;
the same name in two pipelines is told apart by the pipeline's. A mask is background and that; the classes of a dseg stand in a
look-up table beside it or above it (`index`, `name`).
Source: BIDS 1.10, "Imaging data type" of derivatives: "Segmentations" and "Masks"; "The inheritance principle".
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from mri_ds.config import TaskConfig
from mri_ds.data.layouts.bids_names import BidsFile, entities_of, images_of
from mri_ds.data.layouts.text import read_table
from mri_ds.errors import InputError

NAMING = ("label", "desc", "seg", "atlas")
MAPS = ("dseg", "mask")
OWN_SPACES = ("", "orig", "individual", "native", "T1w", "T2w", "FLAIR")  # values of `space` that are the image's own grid


@dataclass
class LabelMaps:
    """The maps of one task, and where its classes stand."""

    pipeline: Path
    files: list[BidsFile] = field(default_factory=list)


def find_label_maps(src: Path) -> tuple[dict[str, LabelMaps], list[str]]:
    """{task: its maps}, and a line about each file that is left out."""
    found, problems = defaultdict[tuple[str, Path], list[BidsFile]](list), []
    for pipeline in sorted(path for path in (src / "derivatives").glob("*") if path.is_dir()):
        for path, file in images_of(pipeline):
            if reason := _why_not(file):
                problems.append(f"{path.relative_to(src)} {reason}")
            elif file is not None:
                found[_name(file), pipeline].append(file)
    counts = defaultdict[str, int](int)
    for name, _ in found:
        counts[name] += 1
    named = {
        name if counts[name] == 1 else f"{pipeline.name}-{name}": LabelMaps(pipeline, files)
        for (name, pipeline), files in sorted(found.items())
    }
    return named, problems


def infer_task(name: str, maps: LabelMaps, src: Path) -> TaskConfig | str:
    """The task of some label maps, or why they are none."""
    if all(file.suffix == "mask" for file in maps.files):
        return TaskConfig(kind="segmentation", classes=["background", name])
    tables = {_lookup(file, maps.pipeline, src) for file in maps.files}
    if None in tables:
        return "has no look-up table (*_dseg.tsv with index and name)"
    try:
        classes = {tuple(_classes(table)) for table in tables if table is not None}
    except InputError as err:
        return f"has a look-up table that cannot be used: {err}"
    if len(classes) > 1:
        return "has look-up tables that differ"
    return TaskConfig(kind="segmentation", classes=list(*classes))


def _why_not(file: BidsFile | None) -> str:
    if file is None:
        return "is not named by its folders"
    if file.suffix not in MAPS:
        return "is no label map (dseg, mask)"
    if file.entities.get("space", "") not in OWN_SPACES:
        return f"lies in space {file.entities['space']}, not on the image's grid"
    return ""


def _name(file: BidsFile) -> str:
    return "-".join(file.entities[key] for key in NAMING if key in file.entities) or file.suffix


def _lookup(file: BidsFile, pipeline: Path, src: Path) -> Path | None:
    """The nearest table upwards whose entities all are the file's; of several in one folder, that with the most."""
    folder = file.path.parent
    while True:
        fitting = []
        for table in sorted(folder.glob("*dseg.tsv")):
            *pairs, suffix = table.name.removesuffix(".tsv").split("_")
            entities = entities_of(pairs)
            if suffix == "dseg" and entities is not None and entities.items() <= file.entities.items():
                fitting.append((len(entities), table))
        if fitting:
            return max(fitting, key=lambda one: one[0])[1]
        if folder in (src, folder.parent):
            return None
        folder = src if folder == pipeline else folder.parent


def _classes(where: Path) -> list[str]:
    """Class names in order. Index 0 may be left out: it is background."""
    rows = read_table(where, "index")
    if any("name" not in row for row in rows.values()):
        raise InputError("has no column name", where=where, fix="write columns index and name")
    named = {"0": "background"} | {index: row["name"] for index, row in rows.items()}
    if sorted(named, key=lambda index: (len(index), index)) != [str(i) for i in range(len(named))]:
        fix = "renumber the classes in table and maps, or describe the task in dataset.yaml"
        raise InputError("is not numbered without gaps", where=where, fix=fix)
    return [named[str(i)] for i in range(len(named))]
