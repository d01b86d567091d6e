"""How fast volumes come off the disk, ours beside other people's loaders: `mri-ds bench loader`.

In: a dataset of .nii.gz files, or none: synthetic subjects are made.  Out: a plain dictionary for JSON.

    {"subjects", "voxels", "patch", "num_workers", "epochs", "rounds", "seconds",
     "full": {contender: {"voxels_per_s", "steady_epochs", "first_batch_s", "first_epoch_s", "peak_bytes", "cpu_ns_per_voxel"}
              or {"absent": reason}},
     "crops": likewise, "ratios": {"full": {contender: ours / theirs}, "crops": ...}, "prepare_s": {"mri_ds", "webdataset"}}

Each contender runs in a process of its own, in turn, `rounds` times over; the median counts. voxels_per_s is over the epochs
after the first, which fills caches: as many as were asked for, and on until `seconds` have gone by, because a few crops take
hundredths of a second, of which nothing can be told. first_batch_s is from the making of the loader on (imports left out) and so
holds the whole caching of CacheDataset. peak_bytes is the PSS of the process with its workers. Files were written just now, so
they are in the page cache for all. Disks far away are another matter.
"""

import importlib.util
import io
import multiprocessing
import resource
import statistics
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mri_ds.bench.contenders import CONTENDERS, CROPS_ONLY, Job
from mri_ds.bench.memory import PeakMemory
from mri_ds.data.layouts import Dataset, SubjectFiles, find_dataset
from mri_ds.errors import InputError

Progress = Callable[[int, int], None]
Row = dict[str, Any]
NEEDS = {"webdataset": "webdataset", "MONAI": "monai"}  # first word of a contender -> package


def bench_loader(
    source: Path | None = None,
    *,
    num_subjects: int = 6,
    size: int = 256,
    patch: tuple[int, int, int] = (64, 64, 64),
    num_workers: int = 2,
    epochs: int = 3,
    rounds: int = 1,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures all contenders on the first `num_subjects` of `source` that have every label map.

    Raises InputError for a dataset without such subjects.
    """
    with tempfile.TemporaryDirectory(prefix="mri-ds-bench-") as folder:
        at = Path(folder)
        dataset = find_dataset(source) if source else _synthetic(at / "subjects", num_subjects, size)
        job, prepare_s = _prepare(_labelled(dataset, num_subjects), at, num_workers)
        turns = [
            (mode, name)
            for _ in range(rounds)
            for mode in ("full", "crops")
            for name in CONTENDERS
            if mode == "crops" or name not in CROPS_ONLY
        ]
        rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for done, (mode, name) in enumerate(turns):
            with tempfile.TemporaryDirectory(dir=at) as cache:
                mine = replace(job, cache=Path(cache), patch=patch if mode == "crops" else None)
                rows[mode, name].append(_run(name, mine, epochs, seconds))
            if progress:
                progress(done + 1, len(turns))
    result = {mode: {name: _median(found) for (m, name), found in rows.items() if m == mode} for mode in ("full", "crops")}
    return {
        "subjects": len(job.subjects),
        "patch": list(patch),
        "num_workers": num_workers,
        "epochs": epochs,
        "rounds": rounds,
        "seconds": seconds,
        **result,
        "ratios": {mode: _ratios(table) for mode, table in result.items()},
        "prepare_s": prepare_s,
    }


# ---- the same subjects for all -------------------------------------------------------------------------------------


def _synthetic(folder: Path, num_subjects: int, size: int) -> Dataset:
    from mri_ds.data.synthesis import synthesize_dataset

    synthesize_dataset(folder, num_subjects=num_subjects + 2, seed=0, size=size)  # two are held out
    return find_dataset(folder)


def _labelled(dataset: Dataset, num_subjects: int) -> Dataset:
    """The subjects that have an image and all label maps in files of their own, at most `num_subjects` and two."""
    maps = [name for name, task in dataset.tasks.items() if task.kind == "segmentation"]
    chosen = [subject for subject in dataset.subjects if all(name in subject.labels for name in maps)][: num_subjects + 2]
    if len(chosen) < 4:
        raise InputError(f"{len(chosen)} subjects have all label maps", fix="give a dataset with at least 4 such subjects")
    return replace(dataset, subjects=chosen)


def _prepare(dataset: Dataset, at: Path, num_workers: int) -> tuple[Job, dict[str, float]]:
    """Shards for us, tars for webdataset, of the same subjects."""
    from mri_ds.data.index import ShardDataset
    from mri_ds.data.shards import write_shards

    began = time.perf_counter()
    write_shards(dataset, at / "shards", num_folds=max(2, len(dataset.subjects) // 2))
    sharded = time.perf_counter()
    names = set(ShardDataset(at / "shards", "train").subject_ids)
    subjects = [subject for subject in dataset.subjects if subject.subject_id in names]
    tars = _write_tars(subjects, list(dataset.tasks), dataset, at, max(1, num_workers))
    job = Job(subjects, dataset.tasks, at / "shards", tars, at, None, num_workers)
    return job, {"mri_ds": sharded - began, "webdataset": time.perf_counter() - sharded}


def _write_tars(subjects: list[SubjectFiles], tasks: list[str], dataset: Dataset, at: Path, num_tars: int) -> list[str]:
    """As many tars as workers, so that each has one."""
    maps = [name for name in tasks if dataset.tasks[name].kind == "segmentation"]
    paths = [at / f"files-{number}.tar" for number in range(num_tars)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for i, subject in list(enumerate(subjects))[number::num_tars]:
                members = {f"image-{c}": file for c, file in enumerate(subject.images)}
                members |= {f"label-{k}": subject.labels[name] for k, name in enumerate(maps)}
                for name, file in members.items():
                    info = tarfile.TarInfo(f"{i:06d}.{name}.nii.gz")
                    info.size = file.stat().st_size
                    tar.addfile(info, io.BytesIO(file.read_bytes()))
    return [str(path) for path in paths]


# ---- one contender -------------------------------------------------------------------------------------------------


def _run(name: str, job: Job, epochs: int, seconds: float = 0.0) -> Row:
    package = NEEDS.get(name.split()[0])
    if package and importlib.util.find_spec(package) is None:
        return {"absent": f"{package} is not installed (pip install {package})"}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, job, epochs, seconds, theirs))
    process.start()
    theirs.close()
    with PeakMemory(process.pid or 0) as peak:
        try:
            row: Row = ours.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"{name} ended with code {process.exitcode}") from None
    process.join()
    return row | {"peak_bytes": peak.num_bytes} if "absent" not in row else row


def _measure(name: str, job: Job, epochs: int, seconds: float, result: Connection) -> None:
    """In a process of its own: the first epoch, then the others."""
    import torch

    multiprocessing.set_start_method("fork", force=True)  # for the workers of all loaders alike
    torch.set_num_threads(1)
    if name.startswith("MONAI"):
        import monai.data
        import monai.transforms  # noqa: F401
    cpu = _cpu_s()
    began = time.perf_counter()
    epoch = CONTENDERS[name](job)
    voxels, first_batch_s = 0, 0.0
    for count, _ in epoch():
        first_batch_s = first_batch_s or time.perf_counter() - began
        voxels += count
    first_epoch_s = time.perf_counter() - began
    began, elapsed, steady, steady_epochs = time.perf_counter(), 0.0, 0, 0
    while steady_epochs < epochs - 1 or elapsed < seconds:
        steady += sum(count for count, _ in epoch())
        steady_epochs += 1
        elapsed = time.perf_counter() - began
    assert steady == voxels * steady_epochs, f"{name} showed {steady} voxels in {steady_epochs} epochs, {voxels} in the first"
    del epoch  # ends its workers, whose time counts once they have ended
    row = {
        "voxels": voxels,
        "voxels_per_s": steady / elapsed,
        "steady_epochs": steady_epochs,
        "first_batch_s": first_batch_s,
        "first_epoch_s": first_epoch_s,
        "cpu_ns_per_voxel": 1e9 * (_cpu_s() - cpu) / (voxels + steady),
    }
    result.send(row)
    result.close()


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _median(rows: list[Row]) -> Row:
    if "absent" in rows[0]:
        return rows[0]
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _ratios(table: dict[str, Row]) -> dict[str, float]:
    """Our voxels per second over theirs."""
    own = table["mri_ds"]["voxels_per_s"]
    return {name: own / row["voxels_per_s"] for name, row in table.items() if "absent" not in row and name != "mri_ds"}
