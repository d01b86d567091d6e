"""What is wrong with a folder of shards: bytes, geometry, labels, leakage between splits, balance, outliers.

Axes: C channel, D H W voxels; lengths in mm.
In: a folder of shards.  Out: Findings. Errors spoil a training or its figures; warnings are for a person to look at.
Every byte is read and every volume decoded, a shard per process at a time.
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mri_ds.data.lint_shard import Finding, Sampled, check_shard
from mri_ds.data.manifest import Manifest, read_manifest
from mri_ds.data.processes import in_order, num_cores

OUTLIER = 6.0  # robust standard deviations; of 10,000 normal values none lies so far out
MIN_FOR_OUTLIERS = 8
MANY = 0.1  # of all subjects, to be told of one by one
RARE = 0.1  # of the share that all classes or sites would have alike


@dataclass
class Report:
    """All findings, worst first, and what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    num_samples: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # task -> split -> class -> subjects
    sites: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> site -> subjects

    @property
    def num_errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"num_errors": self.num_errors}


def lint(folder: str | Path, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> Report:
    """Looks at everything. Raises InputError only for a folder without a manifest that can be read, or with shards missing.

    progress(done, total) counts shards.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    shards = [(folder / name, split) for split, part in manifest.splits.items() for name in part.shards]
    check = functools.partial(check_shard, manifest=manifest)
    report, samples = Report(), list[Sampled]()
    for done, (findings, found) in enumerate(in_order(check, shards, num_workers or min(num_cores(), len(shards) or 1)), start=1):
        report.findings += findings
        samples += found
        if progress:
            progress(done, len(shards))
    report.num_samples = dict(Counter(sample.split for sample in samples))
    report.findings += [*_counts(manifest, samples), *_strangers(folder, manifest), *_duplicates(samples)]
    report.findings += _notes(manifest)
    report.findings += [*_classes(manifest, samples, report), *_sites(samples, report), *_outliers(samples)]
    report.findings.sort(key=lambda finding: finding.severity)  # "error" comes before "warning"
    return report


def _counts(manifest: Manifest, samples: Sequence[Sampled]) -> Iterator[Finding]:
    found = Counter(sample.split for sample in samples)
    for split, part in manifest.splits.items():
        if found[split] != part.num_samples:
            what = f"holds {found[split]} whole samples, the manifest says {part.num_samples}"
            yield Finding("error", "index", split, what)


def _strangers(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    listed = {name for part in manifest.splits.values() for name in part.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield Finding("warning", "index", path.name, "is not in the manifest")


def _notes(manifest: Manifest) -> Iterator[Finding]:
    """What was noticed when the files were read, such as forms of a NIfTI that place it differently."""
    for line in manifest.notes:
        subject, _, note = line.partition(": ")
        yield Finding("warning", "notes", subject, note)


def _duplicates(samples: Sequence[Sampled]) -> Iterator[Finding]:
    """A subject in two splits, by name, by source file or by voxels, makes every figure of the test a lie."""
    by_id = _grouped(samples, lambda sample: [sample.subject_id])
    by_source = _grouped(samples, lambda sample: sorted(set(sample.sources)))
    by_voxels = _grouped(samples, lambda sample: [sample.voxels])
    seen: set[tuple[tuple[str, str], ...]] = set()
    for groups, how in ((by_id, "the same subject id"), (by_source, "a source file in common"), (by_voxels, "the same voxels")):
        for group in groups:
            who = tuple(sorted((sample.split, sample.subject_id) for sample in group))
            if who in seen:
                continue
            seen.add(who)
            splits = sorted({sample.split for sample in group})
            where = ", ".join(f"{split}/{subject}" for split, subject in who)
            if len(splits) > 1:
                yield Finding("error", "leakage", where, f"{how} in splits {' and '.join(splits)}")
            else:
                yield Finding("error" if groups is by_id else "warning", "duplicates", where, f"{how} in split {splits[0]}")


def _grouped(samples: Iterable[Sampled], keys: Callable[[Sampled], Sequence[Hashable]]) -> list[list[Sampled]]:
    groups: dict[Hashable, list[Sampled]] = defaultdict(list)
    for sample in samples:
        for key in keys(sample):
            groups[key].append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _classes(manifest: Manifest, samples: Sequence[Sampled], report: Report) -> Iterator[Finding]:
    for task, config in manifest.tasks.items():
        if config.kind != "classification":
            continue
        counts = {
            split: Counter(s.values[task] for s in samples if s.split == split and task in s.values) for split in manifest.splits
        }
        report.classes[task] = {
            split: {name: found[i] for i, name in enumerate(config.classes)} for split, found in counts.items()
        }
        for split, found in counts.items():
            for i, name in enumerate(config.classes):
                share = found[i] * len(config.classes) / max(1, found.total())
                if found.total() and share < RARE:
                    what = f"class {name!r} has {found[i]} of {found.total()} subjects"
                    yield Finding("warning", "balance", f"{split}: {task}", what)


def _sites(samples: Sequence[Sampled], report: Report) -> Iterator[Finding]:
    for split in sorted({sample.split for sample in samples}):
        report.sites[split] = dict(sorted(Counter(s.site for s in samples if s.split == split and s.site).items()))
    named = sorted({site for found in report.sites.values() for site in found})
    for split, found in report.sites.items():
        for site in named:
            if found and found.get(site, 0) * len(named) / sum(found.values()) < RARE:
                what = f"site {site!r} has {found.get(site, 0)} of {sum(found.values())} subjects"
                yield Finding("warning", "balance", split, what)


def _outliers(samples: Sequence[Sampled]) -> Iterator[Finding]:
    """Each measure on a logarithmic scale, against the other subjects' median and spread.

    Where many are strange, none is: then one line tells that the subjects are of several kinds, as with several units.
    """
    measures: dict[str, list[float]] = {}
    for i in range(max((len(sample.ranges) for sample in samples), default=0)):
        measures[f"range of channel {i}"] = [_at(sample.ranges, i) for sample in samples]
        measures[f"contrast of channel {i}"] = [_at(sample.contrasts, i) for sample in samples]
    for axis in range(3):
        measures[f"spacing along axis {axis}"] = [sample.spacing_mm[axis] for sample in samples]
    for name, values in measures.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.array(values))
        known = logs[np.isfinite(logs)]
        if len(known) < MIN_FOR_OUTLIERS:
            continue
        centre = np.median(known)
        spread = max(1.4826 * float(np.median(np.abs(known - centre))), math.log(1.1))  # a tenth more is never strange
        strange = [i for i, log in enumerate(logs) if not abs(log - centre) <= OUTLIER * spread]
        told = f"the median is {math.exp(centre):.4g}"
        if len(strange) > MANY * len(samples):
            known_values = [values[i] for i in strange]
            what = f"{name} of {len(strange)} subjects is {min(known_values):.4g} to {max(known_values):.4g}, {told}"
            yield Finding("warning", "outlier", "all splits", what)
            continue
        for i in strange:
            where = f"{samples[i].split}/{samples[i].subject_id}"
            yield Finding("warning", "outlier", where, f"{name} is {values[i]:.4g}, {told}")


def _at(values: Sequence[float], i: int) -> float:
    return values[i] if i < len(values) else math.nan
