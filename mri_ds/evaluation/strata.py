"""The same figures for groups of subjects: by site, scanner, sex and decade of age, as far as the shards say.

In: a split, by number of the subject, and what was scored.  Out: {stratum: {level: {"num_subjects", "num_patients",
"tasks": {task: {...}}}}}.
A shard keeps the site, and of a table's sex, age and scanner what layouts/strata.py lets pass; where a scanner is not told, the
tags of DICOM are (manufacturer, model, field); where sex or age are tasks, their labels are. A subject of whom it is not known is
in the level "unknown", and a stratum of which nothing is known is left out. Small groups have wide intervals: look at the counts.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mri_ds.config import TaskConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts.strata import SEX_COLUMNS, age_band, strata_of
from mri_ds.data.members import SampleMeta, Tags

STRATA = ("site", "scanner", "sex", "age_band")
UNKNOWN = "unknown"
NUM_RESAMPLES = 1000  # of each group's intervals

Summarize = Callable[[str, Sequence[int]], dict[str, Any] | None]  # task, numbers of subjects -> its figures, or none


def strata_of_subject(dataset: ShardDataset, index: int) -> dict[str, str]:
    """{stratum: level} of sample `index`, "unknown" where nothing is said."""
    meta = dataset.meta(index)
    known = _of_labels(meta, dataset.tasks) | meta.strata
    scanner = known.get("scanner") or (_machine(meta.acquisition[0]) if meta.acquisition else "")
    found = known | {"site": meta.site, "scanner": scanner}
    return {stratum: found.get(stratum) or UNKNOWN for stratum in STRATA}


def by_stratum(
    levels: Sequence[dict[str, str]], tasks: Sequence[str], summarize: Summarize, *, patients: Sequence[str]
) -> dict[str, Any]:
    """Every task's figures in every group; levels[i] is of subject i, who is a scan of patients[i]."""
    result: dict[str, Any] = {}
    for stratum in STRATA:
        groups = defaultdict[str, list[int]](list)
        for i, own in enumerate(levels):
            groups[own[stratum]].append(i)
        if set(groups) <= {UNKNOWN}:
            continue
        result[stratum] = {
            level: {
                "num_subjects": len(group),
                "num_patients": len({patients[i] for i in group}),
                "tasks": {task: figures for task in tasks if (figures := summarize(task, group)) is not None},
            }
            for level, group in sorted(groups.items())
        }
    return result


def _of_labels(meta: SampleMeta, tasks: dict[str, TaskConfig]) -> dict[str, str]:
    """From tasks named sex (or gender) and age, in years."""
    found: dict[str, str] = {}
    for name, value in meta.values.items():
        task = tasks.get(name)
        if task and task.kind == "classification" and name.lower() in SEX_COLUMNS:
            found |= strata_of({"sex": task.classes[int(value)]})
        elif task and task.kind == "regression" and name.lower() == "age" and task.unit in ("", "years", "year", "y"):
            found |= {"age_band": band} if (band := age_band(value)) else {}
    return found


def _machine(tags: Tags) -> str:
    field = tags.get("field_strength_t")
    parts = [str(tags.get("manufacturer", "")), str(tags.get("model", "")), f"{field:g} T" if field else ""]
    return " ".join(part for part in parts if part)
