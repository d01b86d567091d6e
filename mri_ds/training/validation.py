"""How good the net is on a few held-out subjects, while it trains.

Axes: D H W voxels of the network's grid, K classes.
In: the net as it is now.  Out: {"validation/TASK/FIGURE": number}, and a picture. Whole subjects, in windows of the patch,
without augmentation; figures are those of `metrics`, on the network's grid (`mri-ds evaluate` scores on the native one, windows
overlapping). Subjects are dealt out to the ranks. Sharded weights need every rank at every forward pass, so a rank whose
subject has fewer windows than another's runs blank ones meanwhile.
"""

import logging
import math
from typing import Any

import numpy as np
import torch

from mri_ds.config import RunConfig, TaskConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.subjects import Subjects, WholeSubject
from mri_ds.errors import InputError
from mri_ds.metrics.classification import balanced_accuracy, roc_auc_ovr
from mri_ds.metrics.overlap import dice_per_class, without_ignored
from mri_ds.metrics.regression import mae, pearson_r
from mri_ds.nn.sliding_window import sliding_window, window_corners
from mri_ds.training import distributed
from mri_ds.training.aside import aside
from mri_ds.training.probe import draw_slices

SPLITS = ("val", "validation", "test")  # the first of these that the shards have
OVERLAP = 0.0  # of windows: a trend over the steps needs no blended borders, and this is an eighth of the work
CACHE_BYTES = 2**29
LOG = logging.getLogger(__name__)
Figures = dict[str, float]


class Validation:
    """`run(net)` on at most `num_subjects` subjects, evenly spread over the split's order; 0, or no such split: nothing."""

    def __init__(self, dataset: ShardDataset, config: RunConfig, *, num_subjects: int) -> None:
        self.config = config
        split = next((name for name in SPLITS if name in dataset.manifest.splits), None)
        self.indices: list[int] = []
        if split is None or not num_subjects:
            return
        held_out = ShardDataset(dataset.folder, split)
        self.subjects = Subjects(held_out, config.data, list(config.tasks), cache_bytes=CACHE_BYTES)
        spread = np.linspace(0, len(held_out) - 1, min(num_subjects, len(held_out)))
        self.indices = sorted({int(index) for index in spread.round()})

    def run(self, net: Any) -> tuple[Figures, np.ndarray | None]:
        """Figures over all subjects, the same on every rank, and on rank 0 the first subject's picture. Every rank must call it.

        A figure that is not defined (no subject with that label) is left out.
        """
        rows, picture = [], None
        with aside(net):
            for first in range(0, len(self.indices), distributed.world_size()):
                number = first + distributed.rank()
                subject = self._prepared(self.indices[number]) if number < len(self.indices) else None
                outputs = self._outputs(net, subject)
                rows.append(self._row(subject, outputs))
                if number == 0 and subject is not None:
                    picture = self._draw(subject, outputs)
        if not rows:
            return {}, None
        table = distributed.gather(torch.tensor(rows, dtype=torch.float64)).transpose(0, 1).flatten(0, 1).numpy()
        return self._figures(table[: len(self.indices)]), picture

    def _prepared(self, index: int) -> WholeSubject | None:
        try:
            subject = self.subjects[index]
            d, h, w = (slice(0, size) for size in subject.shape[1:])
            image, labels = subject.read((d, h, w))
        except (InputError, OSError) as err:  # a rank that stopped here would leave the others waiting
            LOG.warning("validation goes without %s: %s", self.subjects.dataset.subject_ids[index], err)
            return None
        return WholeSubject(image, labels, subject.values, subject.spacing_mm, subject.subject_id, subject.fill, foreground=[])

    def _outputs(self, net: Any, subject: WholeSubject | None) -> dict[str, torch.Tensor]:
        """(1, K, D, H, W) logits, (1, K) logits, (1,) numbers of this rank's subject; {} without one."""
        patch, device = self.config.data.patch, distributed.device()
        dtype = next(net.parameters()).dtype
        assert patch != "auto"
        spacing_mm = torch.tensor(self.subjects.spacing_mm if subject is None else subject.spacing_mm, dtype=torch.float32)[None]

        def look(windows: torch.Tensor) -> dict[str, torch.Tensor]:
            return net(windows.to(dtype), spacing_mm.to(device).expand(len(windows), 3))  # type: ignore[no-any-return]

        own = 0
        if subject is not None:
            shape = [max(n, p) for n, p in zip(subject.image.shape[1:], patch, strict=True)]
            own = len(window_corners(shape, patch, OVERLAP))
        most = int(distributed.gather(torch.tensor(own)).max())
        out: dict[str, torch.Tensor] = {}
        if subject is not None:
            image = subject.image[None].to(device)
            out = sliding_window(look, image, patch=patch, overlap=OVERLAP, pad_value=subject.fill)
        blank = torch.zeros(1, self.config.model.in_channels, *patch, device=device)
        for _ in range(most - own):
            look(blank)
        return out

    def _row(self, subject: WholeSubject | None, outputs: dict[str, torch.Tensor]) -> list[float]:
        """One subject's numbers, as many for each task as `_width` says; nan where it has no label."""
        row: list[float] = []
        for name, task in self.config.tasks.items():
            truth = None if subject is None else subject.labels.get(name, subject.values.get(name))
            if truth is None:
                row += [math.nan] * _width(task)
            elif isinstance(truth, torch.Tensor):
                guess = outputs[name][0].argmax(dim=0).cpu().numpy()
                row += _dice_by_class(truth.numpy(), guess, task, self.config.loss.of(name).ignore)
            elif task.kind == "classification":
                row += [float(truth), *outputs[name][0].double().softmax(dim=0).tolist()]
            else:
                row += [float(truth), float(outputs[name][0])]
        return row

    def _figures(self, table: np.ndarray) -> Figures:
        """table (subjects, columns) of `_row`s."""
        figures: Figures = {}
        scores, start = [], 0
        for name, task in self.config.tasks.items():
            columns = table[:, start : start + _width(task)]
            start += _width(task)
            told = _task_figures(task, columns)
            figures |= {f"validation/{name}/{figure}": value for figure, value in told.items() if figure != "score"}
            scores.append(told["score"])
        figures["validation/score"] = float(np.mean([s for s in scores if not math.isnan(s)] or [math.nan]))
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def _draw(self, subject: WholeSubject, outputs: dict[str, torch.Tensor]) -> np.ndarray | None:
        if not self.subjects.maps:
            return None
        name = self.subjects.maps[0]
        return draw_slices(subject.image[0], subject.labels.get(name), outputs[name][0].argmax(dim=0).cpu())


def _dice_by_class(truth: np.ndarray, guess: np.ndarray, task: TaskConfig, ignore: str) -> list[float]:
    """Of every class but the background; nan for the one to ignore, whose true voxels count in none."""
    ignored = task.classes.index(ignore) if ignore else None
    truth, guess, _ = without_ignored(truth, guess, ignored)
    found = dice_per_class(truth, guess, task.num_outputs)
    if ignored is not None:
        found[ignored] = math.nan
    return found[1:].tolist()  # type: ignore[no-any-return]


def _width(task: TaskConfig) -> int:
    return {"segmentation": task.num_outputs - 1, "classification": 1 + task.num_outputs, "regression": 2}[task.kind]


def _task_figures(task: TaskConfig, columns: np.ndarray) -> Figures:
    """`score` is 1 for perfect and about 0 for useless: mean Dice, balanced accuracy, or 1 less the error in standar

    d deviations.
    """
    if task.kind == "segmentation":
        by_class = {name: _mean(columns[:, k]) for k, name in enumerate(task.classes[1:])}
        overall = _mean(np.array(list(by_class.values())))
        return {"dice": overall, **{f"dice/{name}": value for name, value in by_class.items()}, "score": overall}
    labelled = columns[~np.isnan(columns[:, 0])]
    truth = labelled[:, 0]
    if task.kind == "classification":
        classes, chosen = truth.astype(np.int64), labelled[:, 1:].argmax(axis=1) if len(labelled) else truth.astype(np.int64)
        accuracy = balanced_accuracy(classes, chosen, task.num_outputs)
        return {"balanced_accuracy": accuracy, "auc": roc_auc_ovr(classes, labelled[:, 1:]), "score": accuracy}
    error = mae(truth, labelled[:, 1])
    return {"mae": error, "r": pearson_r(truth, labelled[:, 1]), "score": max(0.0, 1 - error / task.std)}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
