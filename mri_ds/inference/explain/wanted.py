"""What is asked for: kinds of explanation, what they explain, how finely."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mri_ds.config import nearest
from mri_ds.errors import InputError
from mri_ds.inference.explain.experts import check_experts
from mri_ds.inference.explain.gradients import STEPS, check_captum
from mri_ds.inference.explain.kan_curves import check_kan
from mri_ds.inference.explain.scene import Scene, one_network
from mri_ds.inference.explain.target import check_names
from mri_ds.inference.explain.task_attention import check_tasks
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet

CHECKS: dict[str, Callable[[BaseMRINet], Any]] = {  # the quick ones first
    "kan": check_kan,
    "tasks": check_tasks,
    "experts": check_experts,
    "rollout": lambda net: None,
    "gradients": lambda net: check_captum(),
    "occlusion": lambda net: None,
}
KINDS = tuple(CHECKS)


@dataclass(frozen=True)
class Wanted:
    """kinds: of KINDS. task, class_name: None for each task's own choice, see target.py. overlap: None for the config's.

    occluder: edge of the box as "20mm" or "8vox" of the network's grid, None for a quarter of the window; it moves by half.
    steps: of the integral. again: also what is there already.
    """

    kinds: tuple[str, ...]
    task: str | None = None
    class_name: str | None = None
    overlap: float | None = None
    occluder: str | None = None
    steps: int = STEPS
    again: bool = False

    def settings(self, kind: str, scene: Scene) -> dict[str, Any]:
        """Those that change what is written."""
        told: dict[str, Any] = {"overlap": scene.overlap}
        if kind in ("rollout", "gradients", "occlusion"):
            told |= {"task": self.task, "class": self.class_name}
        if kind == "gradients":
            told["steps"] = self.steps
        if kind == "occlusion":
            size, step = box_of(self.occluder, scene)
            told |= {"box_voxels": size, "step_voxels": step}
        return told


def choose_kinds(run: Run, asked: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The kinds asked for, or all that the run offers, in the order of KINDS; and a line about each that it does not offer.

    Raises InputError for an unknown kind, and for one asked for that the run has not.
    """
    net = one_network(run)
    for kind in asked:
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no explanation", where="--what", fix=nearest(kind, KINDS))
    if asked:
        for kind in asked:
            CHECKS[kind](net)
        return tuple(kind for kind in KINDS if kind in asked), []
    kinds, lines = [], []
    for kind, check in CHECKS.items():
        try:
            check(net)
            kinds.append(kind)
        except InputError as err:
            lines.append(f"no {kind}: {err}")
    return tuple(kinds), lines


def check_wanted(run: Run, wanted: Wanted) -> None:
    """Raises InputError for names that the run does not know and a box that is none."""
    check_names(run, wanted.task, wanted.class_name)
    if wanted.occluder is not None:
        _parse(wanted.occluder)


def box_of(occluder: str | None, scene: Scene) -> tuple[list[int], list[int]]:
    """Edges of the occluding box, and how far it moves, in voxels of the network's grid, no longer than the image."""
    if occluder is None:
        edges = [p // 4 for p in scene.patch]
    else:
        length, unit = _parse(occluder)
        edges = [round(length / mm) if unit == "mm" else round(length) for mm in scene.spacing_mm[0].tolist()]
    size = [min(max(edge, 1), n) for edge, n in zip(edges, scene.image.shape[2:])]
    return size, [max(edge // 2, 1) for edge in size]


def _parse(text: str) -> tuple[float, str]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mm|vox)", text.strip())
    if not match or float(match[1]) <= 0:
        raise InputError(f"{text!r} is no length", where="--occluder", fix="write it as 20mm or 8vox")
    return float(match[1]), match[2]
