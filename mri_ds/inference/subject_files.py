"""One subject from its image files to its predictions in files; and whether that was done before.

In: NIfTI, DICOM or .npy images of a network's channels, in any orientation.  Out: see outputs.py.
A subject's JSON tells which weights and settings made it from which bytes: one that is as it would be again is done.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.layouts import SubjectFiles, load_subject
from mri_ds.data.preprocess import to_canonical
from mri_ds.errors import InputError
from mri_ds.inference import cleanup
from mri_ds.inference.inputs import find_channels
from mri_ds.inference.outputs import Told, json_path, write_outputs
from mri_ds.inference.run import Run
from mri_ds.inference.subject import BUFFER_BYTES, predict_sample
from mri_ds.sample import Sample
from mri_ds.training.shared_windows import Ranks

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choices:
    """What is asked of a prediction. overlap None: the config's. The first four change what is written."""

    overlap: float | None = None
    keep_small_parts: bool = False
    probabilities: bool = False
    entropy: bool = False
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
            "entropy": self.entropy,
            "calibration": run.calibration.digest,
            "cleanup": cleanup.digest(run.keep_largest),
        }


class SharedError(RuntimeError):
    """A failure of one rank in the middle of what all of them do together."""


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
    canonical, affine = read_canonical(run, files, ranks)
    with tempfile.TemporaryDirectory(dir=_made(out) if choices.probabilities else None) as scratch:
        try:
            predictions = predict_sample(
                run,
                canonical,
                overlap=choices.overlap,
                window_batch=choices.window_batch,
                keep_small_parts=choices.keep_small_parts,
                probabilities=Path(scratch) if choices.probabilities else None,
                entropy=choices.entropy,
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


def done_before(run: Run, files: SubjectFiles, out: Path, choices: Choices) -> Told | None:
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


def read_canonical(run: Run, files: SubjectFiles, ranks: Ranks | None = None) -> tuple[Sample, np.ndarray]:
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
