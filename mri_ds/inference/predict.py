"""From image files to predictions in files: one subject, or many of which some may fail.

In: NIfTI, DICOM or .npy images of a network's channels, in any orientation, or datasets of any layout.  Out: see outputs.py; and
volumes.csv, the mL of every structure of every subject.
A subject's JSON tells which weights and settings made it from which bytes: one that is as it would be again is skipped.
"""

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.layouts import SubjectFiles, load_subject
from mri_ds.data.preprocess import to_canonical
from mri_ds.errors import InputError
from mri_ds.inference import cleanup
from mri_ds.inference.inputs import find_channels, find_inputs
from mri_ds.inference.outputs import Told, describe, json_path, write_outputs
from mri_ds.inference.run import Run, Source, load_run
from mri_ds.inference.subject import BUFFER_BYTES, ClassScores, LabelMap, Prediction, Value, predict_sample
from mri_ds.sample import Sample
from mri_ds.training.shared_windows import Ranks

__all__ = [
    "Choices",
    "ClassScores",
    "LabelMap",
    "Prediction",
    "Results",
    "Run",
    "Value",
    "describe",
    "find_channels",
    "load_run",
    "predict",
    "predict_file",
    "predict_sample",
    "predict_subjects",
]
VOLUMES = "volumes.csv"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choices:
    """What is asked of a prediction. overlap None: the config's. The first three change what is written."""

    overlap: float | None = None
    keep_small_parts: bool = False
    probabilities: bool = False
    again: bool = False  # also where a subject is done
    window_batch: int = 1
    buffer_bytes: int = BUFFER_BYTES

    def settings(self, run: Run) -> Told:
        """Those that change what is written, for the marker."""
        overlap = run.config.predict.overlap if self.overlap is None else self.overlap
        return {
            "overlap": overlap,
            "flip_axes": list(run.flip_axes),
            "keep_small_parts": self.keep_small_parts,
            "probabilities": self.probabilities,
            "calibration": run.calibration.digest,
            "cleanup": cleanup.digest(run.keep_largest),
        }


@dataclass(frozen=True)
class Results:
    """`subjects`: {"subject_id", "tasks", "files"} of each, done now or before (`skipped`); failed: name -> reason."""

    subjects: list[Told] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    volumes: str | None = None  # path of the table
    all_bad_input: bool = False  # nothing could be done, and all of it for bad input

    def as_dict(self) -> Told:
        return {name: value for name, value in asdict(self).items() if name != "all_bad_input"}


def predict(
    checkpoint: Run | Source | Sequence[Source],
    inputs: Source | Sequence[Source],
    output: Source,
    *,
    series: Sequence[str] = (),
    choices: Choices | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Results:
    """Predicts every subject of `inputs` into the folder `output`; one that fails does not stop the rest.

    checkpoint: a Run, or what `load_run` takes. inputs: a path or several, as `inputs.find_inputs` takes them. series: of DICOM
    studies, a pattern per channel. ranks: those of this launch, which share the work (subjects where there are as many as ranks,
    else windows) and return the same results. Raises InputError where nothing can be begun: no run, a dataset that cannot be
    listed, two subjects of one name.

    >>> results = predict("runs/first", ["scans/"], "predictions")          # doctest: +SKIP
    >>> results.subjects[0]["tasks"]["tissue"]["volume_ml"]["white"]        # doctest: +SKIP
    512.3
    """
    run = checkpoint if isinstance(checkpoint, Run) else load_run(checkpoint)
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    subjects, left_out = find_inputs(paths, run.channels, series)
    out, choices = Path(output), choices or Choices()
    if ranks is None or ranks.world_size == 1:
        results = predict_subjects(run, subjects, out, choices, progress=progress)
    elif len(subjects) >= ranks.world_size:
        own = predict_subjects(run, subjects[ranks.rank :: ranks.world_size], out, choices, progress=progress)
        results = _joined(ranks.hear(vars(own)), [one.subject_id for one in subjects])
    else:
        own = predict_subjects(run, subjects, out, choices, ranks=ranks, progress=progress)
        results = Results(**ranks.hear(vars(own))[0])
    if ranks is None or ranks.rank == 0:
        write_volumes(out, results.subjects)
    has_volumes = any("volume_ml" in told for one in results.subjects for told in one["tasks"].values())
    return Results(**{**vars(results), "left_out": left_out, "volumes": str(out / VOLUMES) if has_volumes else None})


def predict_subjects(
    run: Run,
    subjects: Sequence[SubjectFiles],
    out: Path,
    choices: Choices,
    *,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Results:
    """Each subject in turn. Of what goes wrong with one its reason is kept; only what stops the program stops the rest.

    ranks: share the windows of every subject; rank 0 writes. progress hears how many of the subjects are done; of a single one,
    how many of its planes.
    """
    done: list[Told] = []
    skipped: list[str] = []
    failed: dict[str, str] = {}
    num_bad = 0
    inner = progress if len(subjects) == 1 else None
    for files in subjects:
        try:
            before = None if choices.again else _done_before(run, files, out, choices)
            if ranks is not None:
                before = ranks.hear(before)[0]
            if before:
                skipped.append(files.subject_id)
            done.append(before or predict_one(run, files, out, choices, ranks=ranks, progress=inner))
        except SharedError:
            raise  # the others wait for this rank: it cannot go on alone
        except (InputError, OSError, RuntimeError, MemoryError, ValueError) as err:
            num_bad += isinstance(err, InputError)
            failed[files.subject_id] = str(err) or type(err).__name__
        if progress is not None and inner is None and done:
            progress(len(done), len(subjects))
    return Results(done, skipped, failed, all_bad_input=bool(subjects) and num_bad == len(subjects))


class SharedError(RuntimeError):
    """A failure of one rank in the middle of what all of them do together."""


def predict_one(
    run: Run,
    files: SubjectFiles,
    out: Path,
    choices: Choices,
    *,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Told:
    """Reads, predicts and writes one subject; returns what `outputs.write_outputs` does, {} on ranks that do not write.

    Raises InputError for what is missing, unreadable or of another number of channels than the network's.
    """
    source = fingerprint(files)
    canonical, affine = _read(run, files, ranks)
    with tempfile.TemporaryDirectory(dir=_made(out) if choices.probabilities else None) as scratch:
        try:
            predictions = predict_sample(
                run,
                canonical,
                overlap=choices.overlap,
                window_batch=choices.window_batch,
                keep_small_parts=choices.keep_small_parts,
                probabilities=Path(scratch) if choices.probabilities else None,
                buffer_bytes=choices.buffer_bytes,
                share=ranks.share if ranks else None,
                progress=progress,
            )
        except Exception as err:
            if ranks is None:
                raise
            raise SharedError(f"{files.subject_id}: {err}") from err
        if ranks is not None and ranks.rank:
            return {}
        marker = {"checkpoint": run.digest, "settings": choices.settings(run), "source": source} if run.digest else {}
        return write_outputs(out, files, affine, canonical, predictions, marker)


def predict_file(
    run: Run, path: str | Path, out_dir: str | Path, *, keep_small_parts: bool = False, series: Sequence[str] = ()
) -> Told:
    """Predicts one subject and writes the results into `out_dir`; returns the content of SUBJECT.json and the written paths.

    A network of several channels takes a 4-D NIfTI, or any one of its channels' files named SUBJECT_CHANNEL.nii.gz, beside
    which it finds the others; or, with `series` as dicom.read_dicom takes them, one DICOM study. Raises InputError for what is
    missing, unreadable or of another number of channels.
    """
    subject_id, images = find_channels(Path(path), run.channels)
    files = SubjectFiles(subject_id=subject_id, images=images, series=tuple(series))
    return predict_one(run, files, Path(out_dir), Choices(keep_small_parts=keep_small_parts))


def fingerprint(files: SubjectFiles) -> str:
    """Of a subject's files as they lie there: names, sizes and times; a folder's files all count."""
    seen: list[Any] = [files.series]
    for path in files.images:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            owner = next((parent for parent in [file, *file.parents] if parent.is_file()), file)  # of a tar's member, the tar
            state = owner.stat() if owner.exists() else None
            seen.append((file.name, state and (state.st_size, state.st_mtime_ns)))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def write_volumes(out: Path, subjects: Sequence[Told]) -> None:
    """OUT/volumes.csv: a row per subject, a column TASK/CLASS per structure, in mL. No table where nothing was segmented."""
    rows = {
        one["subject_id"]: {
            f"{task}/{name}": ml for task, told in one["tasks"].items() for name, ml in told.get("volume_ml", {}).items()
        }
        for one in subjects
    }
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if not columns:
        return
    path, partial = out / VOLUMES, out / f".{VOLUMES}.{os.getpid()}"
    with partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject_id", *(f"{column}_ml" for column in columns)])
        table.writerows([name, *(row.get(column, "") for column in columns)] for name, row in rows.items())
    os.replace(partial, path)


def _done_before(run: Run, files: SubjectFiles, out: Path, choices: Choices) -> Told | None:
    """What was returned when this subject was predicted from the same bytes by the same weights and settings; else None."""
    path = json_path(out, files.subject_id)
    try:
        told = json.loads(path.read_bytes())
        made, names = told["made"], dict(told["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    wanted = {"checkpoint": run.digest, "settings": choices.settings(run), "source": fingerprint(files)}
    if not run.digest or made != wanted or not all((out / name).is_file() for name in names.values()):
        return None
    written = {what: str(out / name) for what, name in names.items()}
    return {"subject_id": files.subject_id, "tasks": told["tasks"], "files": {**written, "json": str(path)}}


def _read(run: Run, files: SubjectFiles, ranks: Ranks | None) -> tuple[Sample, np.ndarray]:
    """The subject in canonical orientation, and its own affine. What one rank cannot read, all refuse."""
    reason, failure = "", None
    try:
        sample = load_subject(files, {})
        _check_channels(sample, files.images[0], run.channels)
        found = to_canonical(sample), sample["affine"]
    except Exception as err:
        reason, failure = str(err) or type(err).__name__, err
    reasons = ranks.hear(reason) if ranks else [reason]
    if failure is not None:
        raise failure
    if any(reasons):
        raise InputError(next(filter(None, reasons)))
    return found


def _joined(of_ranks: Sequence[Told], order: Sequence[str]) -> Results:
    """What all ranks did, in the order of the subjects."""
    told = [Results(**one) for one in of_ranks]
    place = {name: number for number, name in enumerate(order)}
    failed = {name: reason for one in told for name, reason in one.failed.items()}
    return Results(
        sorted((subject for one in told for subject in one.subjects), key=lambda subject: place[subject["subject_id"]]),
        sorted((name for one in told for name in one.skipped), key=lambda name: place[name]),
        {name: failed[name] for name in order if name in failed},
        all_bad_input=all(one.all_bad_input for one in told),
    )


def _made(out: Path) -> Path:
    """The folder of the results; probabilities are large, and lie there meanwhile, not in a small /tmp."""
    out.mkdir(parents=True, exist_ok=True)
    return out


def _check_channels(sample: Sample, path: Path, channels: Sequence[str]) -> None:
    found = sample["image"].shape[0]
    if found != len(channels):
        names = ", ".join(channels)
        fix = f"give one file per channel named as SUBJECT_{channels[0]}.nii.gz, or a 4-D NIfTI of {names} in this order"
        if len(channels) == 1:
            fix = f"give a 3-D NIfTI of {names}"
        raise InputError(f"has {found} channel(s), and the network was trained on {len(channels)} ({names})", where=path, fix=fix)
