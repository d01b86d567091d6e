"""Tars that webdataset wrote, in a folder or alone: <key>.<what>, samples being the members of one key (up to the first dot).

<key>.<channel>.nii.gz, .nii or .npy are images (<key>.nii.gz: one channel, or all of them in 4-D), <key>.<task>.nii.gz label
maps of the segmentation tasks; <key>.json holds targets, each a text or number, and `patient`, `site`, and for .npy `affine` or
`spacing_mm`; <key>.cls is the class (a number) of the only classification task that the JSON does not tell.
dataset.yaml beside the tars (or a .yaml of a single tar's name) has `channels` and `tasks` as that of a folder. Label maps need
it, because class names stand nowhere else. Pickles and pictures are never opened: members of other kinds are listed.
Source: webdataset's README; it splits names at the first dot and lower-cases what follows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from mri_ds.config import TaskConfig
from mri_ds.data.arrays import read_json
from mri_ds.data.inside_tar import TAR, find_member, members, open_file
from mri_ds.data.layouts.description import DESCRIPTION, HOW_TO_NAME_CLASSES, read_description
from mri_ds.data.layouts.sites import site_column, site_of
from mri_ds.data.layouts.strata import strata_of
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.targets import check_column, check_task, infer_tasks, values_of
from mri_ds.data.layouts.text import Row, is_missing
from mri_ds.data.manifest import MANIFEST
from mri_ds.errors import InputError

VOLUMES = (".nii.gz", ".nii", ".npy")
JSON, CLASS, PATIENT = "json", "cls", "patient"
NAMELESS = ""  # the channel of <key>.nii.gz
LABELS = {"label", "labels", "seg", "segmentation", "mask", "dseg"}  # what is no channel, whatever else it may be
GEOMETRY = {"affine", "spacing_mm"}
MAX_CLASS_BYTES = 64

Sample = dict[str, Path]  # what follows the key, lower case -> the member


def is_webdataset(src: Path) -> bool:
    """A tar, or a folder of tars that has no manifest (with one they are our own shards)."""
    if src.is_file():
        return src.suffix.lower() == TAR
    return src.is_dir() and not (src / MANIFEST).exists() and any(src.glob("*" + TAR))


def find_webdataset(src: Path) -> Dataset:
    """Every sample that has all channels; the others, and members of no use, are problems."""
    samples = find_samples(src)
    where = src.with_suffix(".yaml") if src.is_file() else src / DESCRIPTION
    channels, described, _ = read_description(where)
    maps = {name.lower(): name for name, task in (described or {}).items() if task.kind == "segmentation"}
    volumes = {key: volumes_of(sample) for key, sample in samples.items()}
    channels = channels or _find_channels(volumes, maps, src, where)
    complete = {key: images_for(own, channels) for key, own in volumes.items() if images_for(own, channels)}
    if not complete:
        raise InputError(f"no sample has {' and '.join(channels)}", where=src, fix=f"name channels that exist in {where.name}")
    table = _table({key: samples[key] for key in complete}, described, where)
    patients = {key: row[PATIENT] for key, row in table.items() if not is_missing(row.get(PATIENT, ""))}
    sites = {key: site_of(row, site_column(row), f"{src}: {key}") for key, row in table.items()}
    targets = {key: {name: cell for name, cell in row.items() if name != PATIENT} for key, row in table.items()}
    tasks, problems = _tasks(described, targets, patients, volumes, src, where)
    subjects = [
        SubjectFiles(
            key,
            images,
            {maps[name]: path for name, path in volumes[key].items() if name in maps},
            values_of(key, targets[key], tasks, src),
            patient=patients.get(key, ""),
            site=sites[key],
            strata=strata_of(table[key]),
        )
        for key, images in sorted(complete.items())
    ]
    incomplete = [f"{key} has not all of {', '.join(channels)}: left out" for key in sorted(samples.keys() - complete.keys())]
    return Dataset("WebDataset", channels, tasks, subjects, [*incomplete, *_unused(samples, subjects), *problems])


# ---- members -------------------------------------------------------------------------------------------------------


def find_samples(src: Path) -> dict[str, Sample]:
    """{key: its members}. The key is the path up to the first dot of the file's name, slashes as underscores."""
    samples: dict[str, Sample] = {}
    for tar in [src] if src.is_file() else sorted(src.glob("*" + TAR)):
        own = defaultdict[str, Sample](dict)
        for name in members(tar):
            folder, _, file = name.rpartition("/")
            stem, dot, what = file.partition(".")
            if dot and stem:
                own[(f"{folder}/{stem}" if folder else stem).replace("/", "_")][what.lower()] = tar / name
        if double := next((key for key in own if key in samples), None):
            raise InputError(f"sample {double} is in two tars", where=tar, fix="give each subject one sample")
        samples.update(own)
    return samples


def volumes_of(sample: Sample) -> Sample:
    """{channel or task: member}, NAMELESS for the one that has no name."""
    found: Sample = {}
    for what, path in sample.items():
        suffix = next((suffix for suffix in VOLUMES if f".{what}".endswith(suffix)), None)
        if suffix is None:
            continue
        name = f".{what}".removesuffix(suffix).removeprefix(".")
        if name in found:
            raise InputError(f"{found[name].name} and {path.name} are one image", where=path.parent, fix="keep one of them")
        found[name] = path
    return found


def _find_channels(volumes: Mapping[str, Sample], maps: Iterable[str], src: Path, where: Path) -> list[str]:
    """All names that any sample has, sorted; "image" where members name none."""
    names = {name for own in volumes.values() for name in own} - set(maps)
    if found := sorted(names & LABELS):
        fix = f"write {where.name} beside it, with {HOW_TO_NAME_CLASSES}"
        raise InputError(f"label maps ({', '.join(found)}) need class names", where=src, fix=fix)
    if not names:
        fix = "write <key>.nii.gz, or <key>.<channel>.nii.gz (or .nii, .npy)"
        raise InputError("holds no image", where=src, fix=fix)
    return sorted(names - {NAMELESS}) or ["image"]


def images_for(own: Sample, channels: list[str]) -> list[Path]:
    """One member per channel in order, or the nameless one; [] where one is missing."""
    if all(channel.lower() in own for channel in channels):
        return [own[channel.lower()] for channel in channels]
    return [own[NAMELESS]] if NAMELESS in own and not any(channel.lower() in own for channel in channels) else []


def _unused(samples: Mapping[str, Sample], subjects: list[SubjectFiles]) -> list[str]:
    """One line per kind of member that is never opened."""
    used = {path for subject in subjects for path in (*subject.images, *subject.labels.values())}
    known = {subject.subject_id for subject in subjects}
    kinds = Counter(
        what
        for key, sample in samples.items()
        for what, path in sample.items()
        if key in known and path not in used and what not in (JSON, CLASS)
    )
    return [f"{count} members <key>.{what} are no channel and no label map" for what, count in sorted(kinds.items())]


# ---- targets -------------------------------------------------------------------------------------------------------


def _table(samples: Mapping[str, Sample], described: Mapping[str, TaskConfig] | None, where: Path) -> dict[str, Row]:
    """{key: {name: text}} of the JSON members and of the class members, every row with the same columns."""
    rows = {key: _row(sample[JSON]) if JSON in sample else {} for key, sample in samples.items()}
    columns = {column: "" for row in rows.values() for column in row}
    if any(CLASS in sample for sample in samples.values()):
        open_tasks = [n for n, task in (described or {}).items() if task.kind == "classification" and n not in columns]
        if described is not None and len(open_tasks) != 1:
            what = f"members <key>.{CLASS} belong to one classification task, and {len(open_tasks)} are open"
            raise InputError(what, where=where, fix="name one task, or write the targets into <key>.json")
        name = open_tasks[0] if open_tasks else CLASS
        classes = (described or {})[name].classes if open_tasks else None
        columns[name] = ""
        for key, sample in samples.items():
            if CLASS in sample:
                rows[key][name] = _class(sample[CLASS], classes)
    return {key: columns | row for key, row in rows.items()}


def _row(path: Path) -> Row:
    """The texts and numbers of a JSON member."""
    raw = read_json(path)
    return {name: str(value) for name, value in raw.items() if isinstance(value, str | int | float) and name not in GEOMETRY}


def _class(path: Path, classes: list[str] | None) -> str:
    """The class that a number tells, by name where there are names."""
    member, fix = find_member(path), "write the number of a class, from 0 on"
    with open_file(path)[0] as file:
        text = file.read(MAX_CLASS_BYTES).decode("ascii", "replace").strip()
    if member is None or member.size > MAX_CLASS_BYTES or not text.isascii() or not text.isdigit():
        raise InputError("is no class number", where=path, fix=fix)
    number = int(text)
    if classes is not None and number >= len(classes):
        raise InputError(f"class {number} of {len(classes)}", where=path, fix=fix)
    return str(number) if classes is None else classes[number]


def _tasks(
    described: dict[str, TaskConfig] | None,
    targets: Mapping[str, Row],
    patients: Mapping[str, str],
    volumes: Mapping[str, Sample],
    src: Path,
    where: Path,
) -> tuple[dict[str, TaskConfig], list[str]]:
    if described is None:
        levels = sorted({row[CLASS] for row in targets.values() if row.get(CLASS)}, key=int)
        tasks, left_out = infer_tasks(targets, src, {CLASS: {"Levels": levels}} if levels else {}, patients)
        if not tasks:
            raise InputError("holds no target", where=src, fix=f"write <key>.json, <key>.cls, or label maps and {where.name}")
        return tasks, left_out
    named = {name for own in volumes.values() for name in own}
    for name, task in described.items():
        check_task(name, task, where)
        if task.kind != "segmentation":
            check_column(name, targets, where, src)
        elif name.lower() not in named:
            fix = f"write them as <key>.{name.lower()}.nii.gz, or take the task out"
            raise InputError(f"task {name!r} has no label map of any sample", where=where, fix=fix)
    return described, []
