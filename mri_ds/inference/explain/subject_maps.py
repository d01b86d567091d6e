"""One subject's explanations as files on its own grid, each made once.

In: a subject's files, a Run, what is wanted.  Out: SUBJECT_KIND_....nii.gz, and SUBJECT_explain.json, which says what each file
is and what made it. The JSON is written anew after every kind: a call that was cut short goes on with the next one; of a long
occlusion, which is the slowest, with the next box.
"""

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_ds.data.geometry import Geometry, read_geometry
from mri_ds.data.layouts import SubjectFiles
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.preprocess import to_input_grid
from mri_ds.inference.explain.experts import visits
from mri_ds.inference.explain.gradients import integrated_gradients
from mri_ds.inference.explain.occlusion import boxes_over, occlusion
from mri_ds.inference.explain.pictures import draw_matrix
from mri_ds.inference.explain.rollout import rollout
from mri_ds.inference.explain.scene import Scene, set_scene
from mri_ds.inference.explain.target import Target, choose_targets
from mri_ds.inference.explain.task_attention import task_attention, volume_tasks
from mri_ds.inference.explain.wanted import Wanted, box_of
from mri_ds.inference.outputs import write_json
from mri_ds.inference.run import Run
from mri_ds.inference.subject_files import fingerprint, read_canonical

Told = dict[str, Any]
Progress = Callable[[int, int], None]
Watch = Callable[[str], AbstractContextManager[Progress]]  # a bar for each explanation, under its name
SAVE_EVERY_S = 10.0


@dataclass(frozen=True)
class Job:
    """What every maker of files is given. `affine` is the input's own."""

    scene: Scene
    wanted: Wanted
    subject_id: str
    affine: np.ndarray
    geometry: Geometry | None
    out: Path
    key: str  # of what is made of what

    def write_map(self, name: str, volume: np.ndarray) -> str:
        """A volume on the canonical grid -> the file's name; integers stay integers."""
        path = self.out / f"{self.subject_id}_{name}.nii.gz"
        turned = to_input_grid(volume, self.affine)
        (write_label if turned.dtype.kind in "iu" else write_image)(path, turned, self.affine, self.geometry)
        return path.name

    def targets(self) -> list[Target]:
        def volumes_apart(window: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: output for name, output in self.scene.look(window).items() if output.ndim != 5}

        kinds = {task.kind for task in self.scene.run.config.tasks.values()}
        with torch.inference_mode():
            outputs = self.scene.blended(volumes_apart) if "classification" in kinds and self.wanted.class_name is None else {}
        return choose_targets(self.scene, outputs, self.wanted.task, self.wanted.class_name)


def explain_one(run: Run, files: SubjectFiles, out: Path, wanted: Wanted, watch: Watch) -> Told:
    """Makes what is not there yet; returns the content of SUBJECT_explain.json, with `skipped`, the kinds that were there.

    Raises InputError for what is missing, unreadable or of another number of channels than the network's.
    """
    made = {"checkpoint": run.digest, "calibration": run.calibration.digest, "source": fingerprint(files)}
    path = out / f"{files.subject_id}_explain.json"
    told = _told_before(path, made)
    canonical, affine = read_canonical(run, files)
    scene = set_scene(run, canonical, overlap=wanted.overlap)
    geometry, skipped = read_geometry(files.images[0], affine), []
    for kind in (kind for kind in wanted.kinds if kind in MAKERS):
        settings = wanted.settings(kind, scene)
        if not wanted.again and _is_there(told["explanations"].get(kind), settings, out):
            skipped.append(kind)
            continue
        key = hashlib.sha256(json.dumps([made, settings]).encode()).hexdigest()[:12]
        job = Job(scene, wanted, files.subject_id, affine, geometry, out, key)
        with watch(f"{files.subject_id} {kind}") as report:
            told["explanations"][kind] = {"settings": settings, **MAKERS[kind](job, report)}
        write_json(path, told)
    return {**told, "skipped": skipped}


def _rollout(job: Job, report: Progress) -> Told:
    targets = job.targets()
    maps = rollout(job.scene, targets, progress=report)
    files = [job.write_map(f"rollout_{target.label}", job.scene.to_native(maps[target.label])) for target in targets]
    return {"maps": [{**target.as_dict(), "unit": "times an even share", "file": name} for target, name in zip(targets, files)]}


def _gradients(job: Job, report: Progress) -> Told:
    maps, targets = [], job.targets()
    for number, target in enumerate(targets):

        def of_all(done: int, total: int, before: int = number) -> None:
            report(before * total + done, len(targets) * total)

        found = integrated_gradients(job.scene, target, steps=job.wanted.steps, progress=of_all)
        file = job.write_map(f"gradients_{target.label}", job.scene.share_out(found.of_voxels.sum(dim=0)))
        sums = found.of_voxels.sum(dim=(1, 2, 3), dtype=torch.float64).tolist()
        maps.append(
            {
                **target.as_dict(),
                "file": file,
                "value": found.value,
                "baseline_value": found.baseline_value,
                "baseline_value_rerouted": found.rerouted_value,
                "gap": found.gap,
                "is_rough": found.is_rough,
                "by_channel": dict(zip(job.scene.run.channels, sums)),
            }
        )
    return {"maps": maps, "baseline": job.scene.fill}


def _occlusion(job: Job, report: Progress) -> Told:
    targets = job.targets()
    size, step = box_of(job.wanted.occluder, job.scene)
    partial = job.out / f".{job.subject_id}_occlusion-{job.key}.npy"
    shape = (len(boxes_over(job.scene.image.shape[2:], size, step)), len(targets))
    effects = _effects_before(partial, shape)
    saved = time.monotonic()

    def keep(done: int, total: int) -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVE_EVERY_S and done < total:
            _save(partial, effects)
            saved = time.monotonic()
        report(done, total)

    try:
        maps = occlusion(job.scene, targets, size=size, step=step, effects=effects, progress=keep)
    except BaseException:  # Ctrl-C too
        _save(partial, effects)
        raise
    files = [job.write_map(f"occlusion_{target.label}", job.scene.to_native(maps[target.label])) for target in targets]
    partial.unlink(missing_ok=True)
    told = [
        {**target.as_dict(), "file": name, "largest_fall": float(of.max()), "largest_rise": float(-of.min())}
        for target, name, of in zip(targets, files, effects.T)
    ]
    return {"maps": told, "boxes": shape[0]}


def _experts(job: Job, report: Progress) -> Told:
    found = visits(job.scene, progress=report)
    maps = [
        {
            "layer": layer,
            "choice": number + 1,
            "file": job.write_map(f"experts_layer{layer}" + (f"_choice{number + 1}" if number else ""), ids + 1),
        }
        for layer, choices in found.choices.items()
        for number, ids in enumerate(choices)
    ]
    load = {str(layer): counts.tolist() for layer, counts in found.load.items()}
    return {"maps": maps, "voxel": "expert + 1; 0 where the network looked at nothing", "visits": load}


def _tasks(job: Job, report: Progress) -> Told:
    names = volume_tasks(job.scene.net)
    heads = task_attention(job.scene, progress=report).double().cpu().numpy()
    matrix = heads.mean(axis=0)
    table, picture = (job.out / f"{job.subject_id}_tasks.{suffix}" for suffix in ("csv", "png"))
    partial = table.with_name(f".{table.name}.{os.getpid()}")
    with partial.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["reads", *names])
        rows.writerows([name, *row.tolist()] for name, row in zip(names, matrix))
    os.replace(partial, table)
    draw_matrix(picture, matrix, names, f"{job.subject_id}: what tasks read of one another")
    maps = [{"file": table.name}, {"file": picture.name}]
    return {"maps": maps, "tasks": names, "mean": matrix.tolist(), "heads": heads.tolist()}


MAKERS: dict[str, Callable[[Job, Progress], Told]] = {
    "tasks": _tasks,
    "experts": _experts,
    "rollout": _rollout,
    "gradients": _gradients,
    "occlusion": _occlusion,
}


def _told_before(path: Path, made: Told) -> Told:
    """What the JSON says, if it is of the same weights and bytes; else an empty one."""
    subject_id = path.name.removesuffix("_explain.json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_bytes())
        if told["made"] == made and made["checkpoint"]:
            return {"subject_id": subject_id, "made": made, "explanations": dict(told["explanations"])}
    return {"subject_id": subject_id, "made": made, "explanations": {}}


def _is_there(entry: Told | None, settings: Told, out: Path) -> bool:
    return bool(entry) and entry["settings"] == settings and all((out / one["file"]).is_file() for one in entry["maps"])  # type: ignore[index]


def _effects_before(path: Path, shape: tuple[int, int]) -> torch.Tensor:
    """Of an occlusion that was cut short, NaN where it had not come."""
    with contextlib.suppress(OSError, ValueError):
        found = np.load(path, allow_pickle=False)
        if found.shape == shape and found.dtype == np.float64:
            return torch.from_numpy(found)
    return torch.full(shape, torch.nan, dtype=torch.float64)


def _save(path: Path, effects: torch.Tensor) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, effects.numpy())
    os.replace(partial, path)
