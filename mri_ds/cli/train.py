"""The command `train`; `deepspeed [launcher options] launch/train.py` is the same command on many ranks.

Here only the defaults are decided: which scale, which DeepSpeed JSON, which folders. `training.loop.train` does the work.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.config import SCALES, load_config, nearest
from mri_ds.errors import InputError

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def train(
    ds_config: Annotated[
        Path | None, typer.Option("--ds_config", "--ds-config", help="DeepSpeed JSON: speed. Default: ds_configs/SCALE.json.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help=f"One of {', '.join(SCALES)}. Default: the JSON's file name.")
    ] = None,
    data: Annotated[Path, typer.Option("--data", help="Folder of shards: a path or a URL.")] = Path("shards"),
    config: Annotated[Path | None, typer.Option("--config", help="YAML: science (model, data, loss, training, tasks).")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one YAML key; may be repeated.")
    ] = None,
    ds_overrides: Annotated[
        list[str] | None, typer.Option("--ds", metavar="KEY=VALUE", help="Override one key of the JSON; may be repeated.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; resumed if it has checkpoints. Default: runs/SCALE.")
    ] = None,
    resolve_only: Annotated[bool, typer.Option("--resolve-only", help="Print what would run, as JSON, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the final figures as one JSON object on stdout.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Train, or resume, one run. The same command under `deepspeed` trains on many ranks.

    Example: `mri-ds train --scale small --data shards --run runs/first --set training.steps=200`

    With ZeRO-2 in float32: `mri-ds train --ds zero_optimization.stage=2 --ds bf16.enabled=false`

    On 2 local ranks: `deepspeed --num_accelerators 2 launch/train.py --ds_config ds_configs/small.json`
    """
    sets = overrides or []
    scale = scale or _scale_of(ds_config) or load_config(config, overrides=sets).model.scale
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}", where="--scale", fix=nearest(scale, list(SCALES)))
    ds_config = ds_config or DS_CONFIGS / f"{scale}.json"
    run = run or Path("runs") / scale
    load_config(config, overrides=sets, scale=scale)  # a misspelt key is named before seconds of imports
    from mri_ds.training.loop import train as run_training

    if not (resolve_only or json):
        run_training(config, sets, scale, ds_config, data, run, ds_overrides=ds_overrides or [])
        return
    with console.stdout_for_result():
        result = run_training(
            config, sets, scale, ds_config, data, run, ds_overrides=ds_overrides or [], resolve_only=resolve_only
        )
    if _is_first_rank():
        console.print_json(result)


def _scale_of(ds_config: Path | None) -> str | None:
    """`ds_configs/xl.json` -> "xl". None without a JSON."""
    if ds_config is None:
        return None
    if not ds_config.is_file():
        raise InputError("no such file", where=ds_config, fix="give a DeepSpeed JSON, as ds_configs/small.json")
    if ds_config.stem not in SCALES:
        raise InputError("is not named after a scale", where=ds_config, fix=f"add --scale with one of {', '.join(SCALES)}")
    return ds_config.stem


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
