"""From image files to predictions in files: one subject, or many of which some may fail.

In: NIfTI, DICOM or .npy images of a network's channels, in any orientation, or datasets of any layout.  Out: see outputs.py; and
volumes.csv, the mL of every structure of every subject, and of a calibrated run their intervals and the Dice to be expected.
What was done before is skipped (subject_files.py says how that is known).
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mri_ds.data.layouts import SubjectFiles
from mri_ds.errors import InputError
from mri_ds.inference.inputs import find_channels, find_inputs
from mri_ds.inference.outputs import Told, describe
from mri_ds.inference.run import Run, Source, load_run
from mri_ds.inference.subject import ClassScores, LabelMap, Prediction, Value, predict_sample
from mri_ds.inference.subject_files import Choices, Progress, SharedError, done_before, predict_file, predict_one
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
COLUMNS = ("ml", "low_ml", "high_ml", "dice")
LOOK_BELOW = 0.7  # of Dice; what is more agrees excellently (Zijdenbos et al. 1994)


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

    def look_first(self, below: float = LOOK_BELOW) -> list[Told]:
        """{"subject_id", "task", "class", "dice"} of structures whose expected Dice is below, 0..1, the lowest first."""
        found = [
            {"subject_id": one["subject_id"], "task": task, "class": label, "dice": expected["dice"]}
            for one in self.subjects
            for task, told in one["tasks"].items()
            for label, expected in told.get("quality", {}).items()
            if expected["dice"] < below
        ]
        return sorted(found, key=lambda row: row["dice"])


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

    ranks: share the windows of every subject; rank 0 writes. progress hears of how many subjects all is done or lost; of a
    single one, of how many of its planes.
    """
    done: list[Told] = []
    skipped: list[str] = []
    failed: dict[str, str] = {}
    num_bad = 0
    inner = progress if len(subjects) == 1 else None
    for files in subjects:
        try:
            before = None if choices.again else done_before(run, files, out, choices)
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
            progress(len(done) + len(failed), len(subjects))
    return Results(done, skipped, failed, all_bad_input=bool(subjects) and num_bad == len(subjects))


def write_volumes(out: Path, subjects: Sequence[Told]) -> None:
    """OUT/volumes.csv: a row per subject, a column TASK/CLASS_ml per structure. No table where nothing was segmented.

    Of calibrated runs TASK/CLASS_low_ml, _high_ml and _dice, the Dice to be expected, stand beside it.
    """
    rows = {one["subject_id"]: _columns(one["tasks"]) for one in subjects}
    known = dict.fromkeys(column for row in rows.values() for column in row)
    structures = dict.fromkeys(structure for structure, _ in known)
    columns = [(structure, what) for structure in structures for what in COLUMNS if (structure, what) in known]
    if not columns:
        return
    path, partial = out / VOLUMES, out / f".{VOLUMES}.{os.getpid()}"
    with partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject_id", *(f"{structure}_{what}" for structure, what in columns)])
        table.writerows([name, *(row.get(column, "") for column in columns)] for name, row in rows.items())
    os.replace(partial, path)


def _columns(tasks: Told) -> dict[tuple[str, str], float]:
    """{(TASK/CLASS, one of COLUMNS): number} of one subject."""
    row: dict[tuple[str, str], float] = {}
    for task, told in tasks.items():
        for name, ml in told.get("volume_ml", {}).items():
            structure = f"{task}/{name}"
            row[structure, "ml"] = ml
            if name in told.get("volume_interval_ml", {}):
                row[structure, "low_ml"], row[structure, "high_ml"] = told["volume_interval_ml"][name]
            if name in told.get("quality", {}):
                row[structure, "dice"] = told["quality"][name]["dice"]
    return row


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
