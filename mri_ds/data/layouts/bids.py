"""BIDS: sub-<id>/[ses-<id>/]anat/ images, label maps among the derivatives, targets in participants.tsv and sessions.tsv.

A sample is one run of one session of one subject, and is named by these alone: sub-01_ses-pre_run-2 ("run" only where a session
has several of one kind; a kind with a single run serves them all). All sessions of a subject are one patient. A channel is what
else a name says: "T1w", "ce-gd_T1w". Without dataset.yaml in the root, channels are the kinds that every sample has; with it, a
sample that lacks one of its channels is left out, and listed. Targets and the site of a session (sub-01/sub-01_sessions.tsv)
win over its subject's. Only anat/ is read. Source: BIDS 1.10.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mri_ds.config import TaskConfig
from mri_ds.data.layouts.bids_labels import LabelMaps, find_label_maps, infer_task
from mri_ds.data.layouts.bids_names import BidsFile, anat_folders, images_of
from mri_ds.data.layouts.description import DESCRIPTION, read_description
from mri_ds.data.layouts.sites import site_column, site_of
from mri_ds.data.layouts.strata import strata_of
from mri_ds.data.layouts.subject import Dataset, SubjectFiles
from mri_ds.data.layouts.targets import check_column, check_task, infer_tasks, read_dictionary, values_of
from mri_ds.data.layouts.text import Row, is_missing, read_table
from mri_ds.errors import InputError

TABLE, DICTIONARY, ID = "participants.tsv", "participants.json", "participant_id"
SESSION_ID = "session_id"


@dataclass(frozen=True)
class Scan:
    """One sample to be: who, when, which run, and its images by kind."""

    patient: str
    session: str
    run: str  # "": the session has one
    images: dict[str, BidsFile]

    @property
    def sample_id(self) -> str:
        parts = (("sub", self.patient), ("ses", self.session), ("run", self.run))
        return "_".join(f"{key}-{value}" for key, value in parts if value)


def is_bids(src: Path) -> bool:
    return src.is_dir() and bool(anat_folders(src))


def find_bids(src: Path) -> Dataset:
    """Scans, label maps and tables matched; what belongs to no sample or task is a problem."""
    scans, problems = find_scans(src)
    channels, described, series = read_description(src / DESCRIPTION)
    if series:
        raise InputError("series are of DICOM studies", where=src / DESCRIPTION, fix="name the channels: channels: [T1w, FLAIR]")
    channels = channels or common_channels(scans, src)
    complete = [scan for scan in scans if not _missing(scan, channels)]
    problems += [f"{scan.sample_id} has no {_missing(scan, channels)[0]}: left out" for scan in scans if _missing(scan, channels)]
    if not complete:
        raise InputError(f"no subject has {' and '.join(channels)}", where=src, fix=f"name channels that exist in {DESCRIPTION}")
    maps, lines = find_label_maps(src)
    table, table_lines = _find_rows(src, complete)
    tasks, task_lines = _find_tasks(src, described, maps, table, {scan.sample_id: scan.patient for scan in complete})
    labels, label_lines = _match(complete, {name: maps[name] for name in tasks if name in maps}, src)
    subjects = [
        SubjectFiles(
            scan.sample_id,
            [pick(scan, channel).path for channel in channels],  # type: ignore[union-attr]
            labels.get(scan.sample_id, {}),
            values_of(scan.sample_id, table.get(scan.sample_id, {}), tasks, src / TABLE),
            patient=f"sub-{scan.patient}",
            site=_site(table.get(scan.sample_id, {}), f"{src / TABLE}: {scan.sample_id}"),
            strata=strata_of(table.get(scan.sample_id, {})),
        )
        for scan in sorted(complete, key=lambda scan: scan.sample_id)
    ]
    problems += _unused_images(scans, subjects, src) + lines + table_lines + task_lines + label_lines
    return Dataset("BIDS", channels, tasks, subjects, problems)


# ---- scans ---------------------------------------------------------------------------------------------------------


def find_scans(src: Path) -> tuple[list[Scan], list[str]]:
    visits, problems = defaultdict[tuple[str, str], list[BidsFile]](list), []
    for path, file in images_of(src):
        if file is None:
            problems.append(f"{path.relative_to(src)} is not named by its folders")
        else:
            visits[file.visit].append(file)
    return [scan for visit, files in sorted(visits.items()) for scan in _runs(visit, files)], problems


def _runs(visit: tuple[str, str], files: list[BidsFile]) -> list[Scan]:
    """The samples of one session: one, or one per run where a kind has several."""
    kinds = defaultdict[str, dict[str, BidsFile]](dict)
    for file in files:
        if double := kinds[file.kind].get(file.run):
            what = f"{double.path.name} and {file.path.name} are two files of one scan"
            raise InputError(what, where=file.path.parent, fix="keep one of them")
        kinds[file.kind][file.run] = file
    runs = sorted({run for own in kinds.values() if len(own) > 1 for run in own}) or [""]
    return [
        Scan(
            *visit,
            run,
            {kind: own.get(run) or next(iter(own.values())) for kind, own in kinds.items() if len(own) == 1 or run in own},
        )
        for run in runs
    ]


def pick(scan: Scan, channel: str) -> BidsFile | None:
    """The image of a channel: of that very kind, or, for a bare suffix such as T1w, the only one of that suffix."""
    if channel in scan.images:
        return scan.images[channel]
    of_suffix = [file for file in scan.images.values() if file.suffix == channel]
    return of_suffix[0] if len(of_suffix) == 1 else None


def _missing(scan: Scan, channels: Iterable[str]) -> list[str]:
    return [channel for channel in channels if pick(scan, channel) is None]


def common_channels(scans: list[Scan], src: Path) -> list[str]:
    """The kinds that every sample has; failing these, the suffixes that every sample has once."""
    kinds = [set(scan.images) for scan in scans]
    suffixes = [{file.suffix for file in scan.images.values() if pick(scan, file.suffix)} for scan in scans]
    common = sorted(set.intersection(*kinds)) or sorted(set.intersection(*suffixes)) if scans else []
    if not common:
        fix = f"write {DESCRIPTION} with channels: [T1w, ...]; subjects that lack one are then left out"
        raise InputError("no kind of image is there for every subject", where=src, fix=fix)
    return common


def _unused_images(scans: list[Scan], subjects: list[SubjectFiles], src: Path) -> list[str]:
    used = {path for subject in subjects for path in subject.images}
    there = {file.path for scan in scans for file in scan.images.values()}
    return [f"{path.relative_to(src)} is no channel of a sample" for path in sorted(there - used)]


# ---- targets -------------------------------------------------------------------------------------------------------


def _find_rows(src: Path, scans: list[Scan]) -> tuple[dict[str, Row], list[str]]:
    """{sample: its cells}, of its subject and of its session, every row with the same columns; and the rows of nobody."""
    subjects = read_table(src / TABLE, ID) if (src / TABLE).is_file() else {}
    subjects = {f"sub-{name.removeprefix('sub-')}": row for name, row in subjects.items()}
    rows = {}
    for scan in scans:
        patient, session = f"sub-{scan.patient}", f"ses-{scan.session}"
        rows[scan.sample_id] = subjects.get(patient, {}) | _session_row(src / patient / f"{patient}_sessions.tsv", session)
    columns = {column: "" for row in [*subjects.values(), *rows.values()] for column in row}
    with_images = {f"sub-{scan.patient}" for scan in scans}
    nobody = [f"{name} of {TABLE} has no complete images" for name in subjects if name not in with_images]
    return {sample: columns | row for sample, row in rows.items()}, nobody


def _site(row: Row, where: str) -> str:
    return site_of(row, site_column(row), where)


def _session_row(where: Path, session: str) -> Row:
    """The cells of one session that say something."""
    if not where.is_file():
        return {}
    rows = read_table(where, SESSION_ID)
    row = rows.get(session) or rows.get(session.removeprefix("ses-")) or {}
    return {name: cell for name, cell in row.items() if not is_missing(cell)}


def _find_tasks(
    src: Path,
    described: dict[str, TaskConfig] | None,
    maps: Mapping[str, LabelMaps],
    table: Mapping[str, Row],
    patients: Mapping[str, str],
) -> tuple[dict[str, TaskConfig], list[str]]:
    if described is not None:
        _check(described, maps, table, src)
        return described, [
            f"derivatives hold label maps {name!r}, no task of {DESCRIPTION}" for name in maps if name not in described
        ]
    tasks, lines = {}, []
    for name, of_task in maps.items():
        task = infer_task(name, of_task, src)
        if isinstance(task, TaskConfig):
            tasks[name] = task
        else:
            lines.append(f"label map {name!r} of {of_task.pipeline.name} {task}: left out")
    columns, left_out = infer_tasks(table, src / TABLE, read_dictionary(src / DICTIONARY), patients)
    for name, task in columns.items():
        if name in tasks:
            left_out.append(f"column {name!r} of {TABLE} has the name of a label map: left out")
        else:
            tasks[name] = task
    if not tasks:
        reasons = f" ({lines[0]})" if lines else ""
        fix = f"add columns to {TABLE}, or label maps below derivatives/"
        raise InputError(f"holds no target{reasons}", where=src, fix=fix)
    return tasks, lines + left_out


def _check(described: Mapping[str, TaskConfig], maps: Mapping[str, LabelMaps], table: Mapping[str, Row], src: Path) -> None:
    where = src / DESCRIPTION
    for name, task in described.items():
        check_task(name, task, where)
        if task.kind != "segmentation":
            check_column(name, table, where, src / TABLE)
        elif name not in maps:
            found = f"found there: {', '.join(maps)}" if maps else "none was found there"
            what = f"task {name!r} has no label map below derivatives/"
            raise InputError(what, where=where, fix=f"name it as its files' label or desc says ({found})")


# ---- label maps ----------------------------------------------------------------------------------------------------


def _match(scans: list[Scan], maps: Mapping[str, LabelMaps], src: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """{sample: {task: label map}}, and a line about each map of no sample."""
    labels, lines = defaultdict[str, dict[str, Path]](dict), []
    for task, of_task in maps.items():
        for file in of_task.files:
            owners = [scan for scan in scans if (scan.patient, scan.session) == file.visit and _is_run(scan, file)]
            if len(owners) != 1:
                why = "belongs to no complete sample" if not owners else "does not say of which run it is"
                lines.append(f"{file.path.relative_to(src)} {why}")
                continue
            own = labels[owners[0].sample_id]
            if task in own:
                what = f"{own[task].name} and {file.path.name} are two label maps of task {task!r}"
                raise InputError(what, where=file.path.parent, fix="keep one of them")
            own[task] = file.path
    return labels, lines


def _is_run(scan: Scan, file: BidsFile) -> bool:
    return not file.run or not scan.run or file.run == scan.run
