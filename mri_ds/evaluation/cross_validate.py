"""Cross-validation: K trainings, each by `mri-ds train` in a process of its own, and every subject predicted once, unseen.

In: a folder of shards and the options of `mri-ds train`.  Out, in one folder:
    plan.json, folds.csv            what is asked for, and which subject is held out in which fold
    shards/fold-K/                  the fold as a folder of shards (links, see data/folds.py)
    fold-K/                         its run folder, with fold-K/evaluation.json of its held-out subjects
    evaluation.json                 as `evaluate`'s, over all subjects out of fold, with "folds" beside it
    out_of_fold.csv                 the same subjects as one table, a line for each figure
The same command again goes on: a finished fold is not touched, an interrupted one goes on from its checkpoint.
"""

import csv
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mri_ds.data.fingerprint import Summary
from mri_ds.data.folds import deal, summarize_all, write_fold
from mri_ds.data.manifest import Manifest, read_manifest, with_statistics
from mri_ds.data.remote import locate
from mri_ds.errors import InputError, RunError
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.evaluation.figures import Figures, json_ready, summarize
from mri_ds.inference.run import load_run
from mri_ds.training import signals

EVALUATION = "evaluation.json"
SECONDS = "train_seconds.json"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
NOT_THEIRS = ("--run", "--resume", "--data", "--resolve-only", "--json")  # options of `train` that are decided here
NOT_SCIENCE = ("--ranks", "--restarts", "--profile")  # may differ when the command is given again
# `mri-ds`, which the kernel asks to leave when this process ends, however it ends: no training goes on that nobody waits for
MRI_DS = """
import signal, sys
from mri_ds.training.processes import die_with_parent
die_with_parent(signal.SIGTERM)
from mri_ds.cli.main import main
main(sys.argv[1:])
"""
Say = Callable[[str], None]


class Left(Exception):
    """A training was asked by a signal to leave, saved its checkpoint and left; so does the cross-validation."""

    def __init__(self, fold: int, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"fold {fold} was asked to stop: the same command goes on from its checkpoint")


def cross_validate(
    shards: str | Path,
    out: str | Path,
    train_options: Sequence[str] = (),
    *,
    num_folds: int = 5,
    seed: int = 0,
    only: Sequence[int] = (),
    say: Say = lambda text: None,
    progress: Callable[[int, int], None] | None = None,
) -> Figures:
    """Trains and evaluates every fold that is not finished, pools, and returns the content of OUT/evaluation.json.

    train_options: of `mri-ds train`, but --data and --run. only: these folds alone, so that several machines may share the work;
    as long as others are missing, the pooled figures are of those that are there. `progress` hears of subjects that are read.
    Raises InputError for what a user can mend, another cross-validation's folder included, RunError where a training failed, and
    Left where one was stopped.
    """
    source, out = locate(shards), Path(out)
    if not isinstance(source, Path):
        raise InputError(
            "lies on another machine", where=shards, fix="copy the shards to this one: folds are made of links to them"
        )
    _check_options(train_options)
    plan = _plan(source, train_options, num_folds, seed)
    _keep_plan(out, plan)
    summaries = summarize_all(source, kept=out / "summaries.json", progress=progress)
    fold_of = deal(source, num_folds=num_folds, seed=seed, summaries=summaries)
    _write_table(out / "folds.csv", [["subject_id", "fold"], *([s, fold_of[s]] for s in sorted(fold_of))])
    if unknown := [fold for fold in only if not 0 <= fold < num_folds]:
        raise InputError(f"no fold {unknown[0]}", where="--only", fix=f"choose from 0 to {num_folds - 1}")
    for fold in only or range(num_folds):
        if (out / f"fold-{fold}" / EVALUATION).is_file():
            say(f"fold {fold} of {num_folds}: finished before")
            continue
        view = out / "shards" / f"fold-{fold}"
        write_fold(source, view, fold_of, fold, summaries)
        say(f"fold {fold} of {num_folds}: {sum(f != fold for f in fold_of.values())} subjects to train on")
        _train(view, out / f"fold-{fold}", train_options, fold)
        say(f"fold {fold} of {num_folds}: predicting its {sum(f == fold for f in fold_of.values())} held-out subjects")
        _write_json(out / f"fold-{fold}" / EVALUATION, evaluate(load_run(out / f"fold-{fold}"), view, split="test"))
    pooled = pool(out, read_manifest(source), summaries)
    _write_json(out / EVALUATION, pooled)
    _write_table(out / "out_of_fold.csv", [["subject_id", "fold", "task", "figure", "class", "value"], *_lines(pooled)])
    return pooled


def pool(out: Path, manifest: Manifest, summaries: Mapping[str, Summary]) -> Figures:
    """The finished folds' subjects as one evaluation; "folds" has each fold's own figures and the seconds of its training.

    Figures over all subjects mix the scores of K networks; ranks (AUC, r) can suffer from that, and then differ from the mean of
    the folds' own, which stands beside them. The constant predictor knows the statistics of all subjects.
    """
    told = {}
    for path in sorted(out.glob(f"fold-*/{EVALUATION}")):
        told[int(path.parent.name.removeprefix("fold-"))] = json.loads(path.read_bytes())
    subjects = [{**subject, "fold": fold} for fold in sorted(told) for subject in told[fold]["subjects"]]
    if not subjects:
        return {"tasks": {}, "subjects": [], "num_subjects": 0, "folds": []}
    names = next(iter(told.values()))["tasks"]
    known = with_statistics(manifest.tasks, [summaries[subject] for subject in sorted(summaries)])
    patients = {subject: patient for fold in sorted(told) for subject, patient in told[fold].get("patients", {}).items()}
    whose = [patients.get(subject["subject_id"], subject["subject_id"]) for subject in subjects]
    tasks = {}
    for name in names:
        chosen = [(_with_nan(subject[name]), patient) for subject, patient in zip(subjects, whose) if name in subject]
        rows, of = [row for row, _ in chosen], [patient for _, patient in chosen]
        tasks[name] = summarize(manifest.tasks[name], known[name], rows, ignore=names[name].get("ignore", ""), patients=of)
    folds = [
        {
            "fold": fold,
            "num_subjects": told[fold]["num_subjects"],
            "train_s": _seconds(out / f"fold-{fold}" / SECONDS),
            "tasks": told[fold]["tasks"],
        }
        for fold in sorted(told)
    ]
    counts = {"num_subjects": len(subjects), "patients": patients, "num_patients": len(set(whose))}
    ready: Figures = json_ready({"tasks": tasks, "subjects": subjects, **counts, "folds": folds})
    return ready


# ---- one training ------------------------------------------------------------------------------------------------------


def _train(view: Path, run: Path, options: Sequence[str], fold: int) -> None:
    """`mri-ds train` in a process of its own, to its end. Its output goes to stderr; the seconds of all its starts are summed."""
    command = [sys.executable, "-c", MRI_DS, "train", f"--data={view.resolve()}", f"--run={run.resolve()}", *options]
    before, began = _seconds(run / SECONDS), time.monotonic()
    child = subprocess.Popen(
        command,
        stdout=2,  # stderr, whatever sys.stderr is: stdout is for the result
        start_new_session=True,  # a Ctrl-C at the terminal reaches it once, through this process
    )
    with _passing_signals_on(child) as heard:
        code = child.wait()
    if run.is_dir():
        _write_json(run / SECONDS, {"train_s": before + time.monotonic() - began})
    if (run / "requeue").is_file():
        signals.ask_for_requeue(run.parent)
    is_done = (run / "model.safetensors").is_file()
    if code == 0 and is_done and not heard:
        return
    if code == 2:
        raise InputError(f"the training of fold {fold} was refused: see above", fix="correct the options of `mri-ds train`")
    if heard or (run / "requeue").is_file():
        raise Left(fold, code or (128 + heard[0] if heard and heard[0] != signal.SIGUSR1 else 0))
    raise RunError(f"the training of fold {fold} ended with exit code {code}; the same command goes on from its last checkpoint")


@contextmanager
def _passing_signals_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Signals that ask this process to leave go to the training, which saves a checkpoint first. Yields those that came."""
    heard: list[int] = []

    def tell(signum: int, _frame: Any) -> None:
        heard.append(signum)
        child.send_signal(signum)

    before = {signum: signal.signal(signum, tell) for signum in PASSED_ON if signal.getsignal(signum) != signal.SIG_IGN}
    try:
        yield heard
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- what was asked for --------------------------------------------------------------------------------------------------


def _check_options(options: Sequence[str]) -> None:
    for option in options:
        if (name := option.split("=")[0]) in NOT_THEIRS:
            raise InputError(f"{name} is not for the trainings of a cross-validation", where="cross-validate", fix="leave it out")


def _plan(source: Path, options: Sequence[str], num_folds: int, seed: int) -> dict[str, Any]:
    """What decides the result. Files count by their content."""
    manifest = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest() if read_manifest(source) else ""
    return {"manifest_sha256": manifest, "num_folds": num_folds, "seed": seed, "train": list(_science(options))}


def _science(options: Sequence[str]) -> Iterator[str]:
    skip = False
    for option in options:
        name, is_whole, value = option.partition("=")
        if skip or name in NOT_SCIENCE:
            skip = not skip and not is_whole
            continue
        digest = _digest(value if is_whole else option)
        yield (f"{name}={digest}" if is_whole else digest) if digest else option


def _digest(text: str) -> str:
    """Of the file that bears this name; "" where there is none."""
    with suppress(OSError, ValueError):  # as long, or as odd, as no name can be
        if Path(text).is_file():
            return hashlib.sha256(Path(text).read_bytes()).hexdigest()
    return ""


def _keep_plan(out: Path, plan: dict[str, Any]) -> None:
    path, is_begun = out / "plan.json", any(out.glob("fold-*"))  # before, an option that was refused may be mended
    if is_begun and path.is_file() and (old := json.loads(path.read_bytes())) != plan:
        changed = next(key for key in plan if old.get(key) != plan[key])
        words = {"manifest_sha256": "the shards", "num_folds": "--folds", "seed": "--seed", "train": "options of `mri-ds train`"}
        raise InputError(
            f"holds a cross-validation with other {words[changed]}", where=out, fix="choose another --out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(path, plan)


# ---- files ---------------------------------------------------------------------------------------------------------------


def _lines(pooled: Figures) -> Iterator[list[Any]]:
    """The pooled subjects in long form: one line per subject, task, figure and class."""
    for subject in pooled["subjects"]:
        for task, figures in subject.items():
            if not isinstance(figures, dict):
                continue
            for figure, value in figures.items():
                by_class = value if isinstance(value, dict) else {"": value}
                for label, number in by_class.items():
                    if isinstance(number, dict):  # figures of other predictors, which evaluation.json has
                        continue
                    yield [subject["subject_id"], subject["fold"], task, figure, label, "" if number is None else number]


def _with_nan(value: Any) -> Any:
    """JSON has null where `figures` computes with nan."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_bytes())["train_s"]) if path.is_file() else 0.0


def _write_json(path: Path, content: Any) -> None:
    partial_file = path.with_name(f".{os.getpid()}.{path.name}")
    partial_file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial_file, path)


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    partial_file = path.with_name(f".{os.getpid()}.{path.name}")
    with partial_file.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    os.replace(partial_file, path)
