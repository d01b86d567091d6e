"""What a run's folder tells, read once; what is absent is None or empty, and the report says how to get it.

In: RUN as `mri-ds train` leaves it, evaluated or not, or the folder of a cross-validation.  Out: Gathered.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mri_ds.config import RunConfig, load_config
from mri_ds.data.manifest import Manifest
from mri_ds.errors import InputError
from mri_ds.inference.run import WEIGHTS, fold_folders

PLACES = ("evaluation/evaluation.json", "evaluation.json")
Line = dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """`members`: the folder of the run, or of each fold. `curves`: by member's name ("" for a run alone), metrics.jsonl's lines.

    `config` and `manifest` of a cross-validation are its first fold's; `speed` is ds_config.json, `ranks` how many trained.
    """

    run: Path
    members: list[Path]
    config: RunConfig
    manifest: Manifest
    evaluation: dict[str, Any] | None
    curves: dict[str, list[Line]]
    speed: dict[str, Any]
    ranks: int
    shards: Path | None
    calibration: dict[str, Any] | None
    wall_s: float | None  # of the trainings, starts included, where somebody measured it
    notes: list[str] = field(default_factory=list)

    @property
    def is_cross_validation(self) -> bool:
        return self.members != [self.run]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The evaluation's tasks; none before it."""
        found = self.evaluation["tasks"] if self.evaluation else {}
        return {name: task for name, task in found.items() if task is not None}

    @property
    def subjects(self) -> list[dict[str, Any]]:
        return self.evaluation["subjects"] if self.evaluation else []

    def member_of(self, subject: dict[str, Any]) -> Path:
        """The run that did not see this subject in training."""
        return self.run / f"fold-{subject['fold']}" if self.is_cross_validation else self.run

    def shards_of(self, subject: dict[str, Any]) -> Path | None:
        own = self.run / "shards" / f"fold-{subject.get('fold')}"
        return own if self.is_cross_validation and own.is_dir() else self.shards


def gather(run: str | Path, *, data: str | Path | None = None) -> Gathered:
    """Reads everything that is small. data: the shards, where they are not where the training found them.

    Raises InputError for a folder that is no run.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError("is not a folder", where=run, fix="give the folder that `mri-ds train` or `cross-validate` wrote")
    members = fold_folders(run) or [run]
    first = members[0]
    if not (first / "config.yaml").is_file():
        raise InputError("has no config.yaml", where=first, fix="give the folder that `mri-ds train` or `cross-validate` wrote")
    names = [member.name for member in members] if members != [run] else [""]
    evaluation, where = _evaluation(run)
    notes = []
    if where is not None and any(_is_newer(member / WEIGHTS, where) for member in members):
        notes.append(f"{where.name} is older than the weights: evaluate again to be sure that it is theirs")
    return Gathered(
        run=run,
        members=members,
        config=load_config(first / "config.yaml"),
        manifest=_manifest(first / "manifest.json"),
        evaluation=evaluation,
        curves={name: _lines(member / "metrics.jsonl") for name, member in zip(names, members)},
        speed=_json(first / "ds_config.json") or {},
        ranks=int((_json(first / "micro_batch.json") or {}).get("ranks", 1)),
        shards=_shards(first, data),
        calibration=_json(run / "calibration.json"),
        wall_s=_wall_s(members),
        notes=notes,
    )


def _evaluation(run: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The newest of the places where evaluations are written."""
    found = sorted((run / name for name in PLACES if (run / name).is_file()), key=lambda path: path.stat().st_mtime)
    if not found:
        return None, None
    told = _json(found[-1])
    if not isinstance(told, dict) or not isinstance(told.get("tasks"), dict) or not isinstance(told.get("subjects"), list):
        raise InputError("is not an evaluation", where=found[-1], fix="write it with `mri-ds evaluate`, or remove it")
    return told, found[-1]


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError("has no manifest.json", where=path.parent, fix="run the same train command again") from None
    except ValidationError as err:
        raise InputError(
            f"is not a manifest: {err.errors()[0]['msg']}", where=path, fix="run the same train command again"
        ) from None


def _lines(path: Path) -> list[Line]:
    """A line torn by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _shards(first: Path, data: str | Path | None) -> Path | None:
    """Where the subjects are; None where they are no longer, or on another machine."""
    if data is not None:
        return Path(data)
    told = (_json(first / "launch.json") or {}).get("data")
    return Path(told) if told and (Path(told) / "manifest.json").is_file() else None


def _wall_s(members: list[Path]) -> float | None:
    """What the cross-validation or the demo measured around the trainings."""
    found = []
    for member in members:
        told = _json(member / "train_seconds.json") or {}
        demo = (_json(member / "demo_seconds.json") or {}).get("seconds", {})
        found.append(told.get("train_s") or demo.get("train"))
    return float(sum(found)) if all(found) else None


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime > other.stat().st_mtime


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        raise InputError("is not JSON", where=path, fix="remove it, or make it again") from None
