"""How accurate MONAI's networks become in the time that ours took, on the same folds: shards, augmentation, loss, sliding window
and metrics are ours, the network alone is theirs.

In: the folder of a cross-validation that has finished at least one fold.  Out: OUT/NAME/fold-K/evaluation.json and
OUT/NAME/evaluation.json of each contender, and a table. The same command again goes on: a fold that is there stays as it is.
The time of a fold is that of its whole `mri-ds train`, start included; a contender's clock starts before its network is built.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from mri_ds.bench.peer_networks import PEERS, PeerNet
from mri_ds.bench.plain import Cycle, fit
from mri_ds.config import RunConfig, TaskConfig, load_config, nearest
from mri_ds.data.fingerprint import Summary
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader
from mri_ds.data.manifest import read_manifest
from mri_ds.errors import InputError
from mri_ds.evaluation.compare import compare
from mri_ds.evaluation.cross_validate import EVALUATION, SECONDS, pool
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.inference.run import Run
from mri_ds.losses import MultiTaskLoss
from mri_ds.objectives.supervised import SupervisedObjective
from mri_ds.objectives.task_loss import loss_of

OURS = "mri_ds"
SUMMARIES = TypeAdapter(dict[str, Summary])
Say = Callable[[str], None]


def bench_accuracy(
    cross_validation: Path,
    out: Path,
    *,
    contenders: Sequence[str] = tuple(PEERS),
    seconds: float | None = None,
    micro_batch: int = 2,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """{"folds", "contenders": {name: {"tasks", "parameters", "train_s", "steps"}}, "comparisons": {name: `compare`, B ours}}.

    seconds: of training per fold; by default what the cross-validation's own took. Raises InputError for a folder without a
    finished fold, a name that is no contender, and a study without a segmentation.
    """
    for name in contenders:
        if name not in PEERS:
            what = f"unknown network {name!r}; there are {', '.join(PEERS)}"
            raise InputError(what, where="--contenders", fix=nearest(name, list(PEERS)))
    folds = sorted(int(path.parent.name.removeprefix("fold-")) for path in cross_validation.glob(f"fold-*/{EVALUATION}"))
    if not folds:
        raise InputError("holds no finished fold", where=cross_validation, fix="run `mri-ds cross-validate --out` with it first")
    for fold in folds:
        for name in contenders:
            _one_fold(cross_validation, out / name / f"fold-{fold}", fold, name, seconds, micro_batch, say)
    manifest = read_manifest(cross_validation / "shards" / f"fold-{folds[0]}")
    summaries = SUMMARIES.validate_python(json.loads((cross_validation / "summaries.json").read_bytes())["summaries"])
    pooled = {OURS: pool(cross_validation, manifest, summaries)}
    for name in contenders:
        pooled[name] = pool(out / name, manifest, summaries)
        _write(out / name / EVALUATION, pooled[name])
    return {
        "folds": folds,
        "contenders": {name: _row(figures, _made(cross_validation, out, name, folds)) for name, figures in pooled.items()},
        "comparisons": {name: compare(pooled[name], pooled[OURS]) for name in contenders},
    }


def _one_fold(
    cross_validation: Path, folder: Path, fold: int, name: str, seconds: float | None, micro_batch: int, say: Say
) -> None:
    """Trains and evaluates one contender on one fold, unless that is done."""
    if (folder / EVALUATION).is_file():
        say(f"{name}, fold {fold}: finished before")
        return
    run_dir, view = cross_validation / f"fold-{fold}", cross_validation / "shards" / f"fold-{fold}"
    if seconds is None:
        seconds = float(json.loads((run_dir / SECONDS).read_bytes())["train_s"])
    config = _only_segmentations(load_config(run_dir / "config.yaml"), where=run_dir)
    bf16 = bool(json.loads((run_dir / "ds_config.json").read_bytes()).get("bf16", {}).get("enabled"))
    say(f"{name}, fold {fold}: training for {seconds:.0f} s")
    run, told = train_peer(name, config, ShardDataset(view, "train"), seconds=seconds, micro_batch=micro_batch, bf16=bf16)
    say(f"{name}, fold {fold}: {told['steps']} updates in {told['train_s']:.0f} s; predicting the held-out subjects")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SECONDS, told)
    _write(folder / EVALUATION, evaluate(run, view, split="test"))


def train_peer(
    name: str,
    config: RunConfig,
    dataset: ShardDataset,
    *,
    seconds: float,
    micro_batch: int,
    bf16: bool,
    max_steps: int | None = None,
) -> tuple[Run, dict[str, Any]]:
    """The trained contender, ready to be evaluated, and {"train_s", "steps", "parameters"}."""
    began = time.perf_counter()
    training, peer = config.training, PEERS[name]
    micro_batch = max(n for n in range(1, micro_batch + 1) if training.global_batch % n == 0)
    torch.manual_seed(training.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = PeerNet(peer, config.tasks, config.model.in_channels).to(device)
    loss = MultiTaskLoss(
        {task: loss_of(entry, config.loss.of(task)) for task, entry in config.tasks.items()},
        learn_task_weights=config.loss.learn_task_weights,
    )
    batches = make_loader(
        dataset,
        config.data,
        config.tasks,
        seed=training.seed,
        global_batch=training.global_batch,
        micro_batch=micro_batch,
        rank=0,
        world_size=1,
    )
    steps = fit(
        SupervisedObjective(net, loss).to(device),
        (_to(batch, device) for batch in batches),
        Cycle(peer.lr, training.warmup_fraction, training.min_lr_ratio),
        deadline=began + seconds,
        began=began,
        accumulation=training.global_batch // micro_batch,
        weight_decay=training.weight_decay,
        bf16=bf16,
        max_steps=max_steps,
    )
    parameters = sum(p.numel() for p in net.parameters())
    told = {"train_s": time.perf_counter() - began, "steps": steps, "parameters": parameters}
    return Run(net.eval(), config, dataset.manifest.channels, device), told


def _only_segmentations(config: RunConfig, *, where: Path) -> RunConfig:
    tasks = {name: task for name, task in config.tasks.items() if task.kind == "segmentation"}
    if not tasks:
        raise InputError("learns no segmentation, and MONAI's networks nothing else", where=where, fix="compare other runs")
    return config.model_copy(update={"tasks": tasks, "curriculum": None})


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


def _row(figures: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    tasks = {
        name: {key: task[key] for key in ("dice", "dice_mean", "hd95_mm")}
        for name, task in figures["tasks"].items()
        if task["kind"] == "segmentation"
    }
    return {"tasks": tasks, "num_subjects": figures["num_subjects"], **made}


def _made(cross_validation: Path, out: Path, name: str, folds: Sequence[int]) -> dict[str, Any]:
    """Mean seconds and updates of a fold; parameters."""
    root = cross_validation if name == OURS else out / name
    told = [json.loads((root / f"fold-{fold}" / SECONDS).read_bytes()) for fold in folds]
    made: dict[str, Any] = {"train_s": sum(one["train_s"] for one in told) / len(told)}
    if name == OURS:
        config = load_config(root / f"fold-{folds[0]}" / "config.yaml")
        made |= {"steps": config.training.steps, "parameters": _our_parameters(config, config.tasks)}
    else:
        made |= {"steps": sum(one["steps"] for one in told) / len(told), "parameters": told[0]["parameters"]}
    return made


def _our_parameters(config: RunConfig, tasks: Mapping[str, TaskConfig]) -> int:
    from mri_ds.mri_network import BaseMRINet

    with torch.device("meta"):
        return sum(p.numel() for p in BaseMRINet(config.model, dict(tasks)).parameters())


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
