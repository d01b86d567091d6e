"""The command `train`; `deepspeed [launcher options] launch/train.py` is the same command on many ranks.

Here only the defaults are decided: which scale, which DeepSpeed JSON, which folders. `training.loop.train` does the work.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

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
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; resumed if it has checkpoints. Default: runs/SCALE.")
    ] = None,
    resolve_only: Annotated[bool, typer.Option("--resolve-only", help="Print what would run, as JSON, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the final figures as one JSON object on stdout.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Train, or resume, one run. The same command under `deepspeed` trains on many ranks.

    Example: `mri-ds train --scale small --data shards --run runs/first --set training.steps=200`

    On 2 local ranks: `deepspeed --num_accelerators 2 launch/train.py --ds_config ds_configs/small.json`
    """
    sets = overrides or []
    scale = scale or _scale_of(ds_config) or load_config(config, overrides=sets).model.scale
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}", where="--scale", fix=nearest(scale, list(SCALES)))
    ds_config = ds_config or DS_CONFIGS / f"{scale}.json"
    run = run or Path("runs") / scale
    load_config(config, overrides=sets, scale=scale)  # a misspelt key is named before seconds of imports
    from mri_ds.training import signals

    with signals.listening():  # before the imports of training, which take seconds
        try:
            result = _train(config, sets, scale, ds_config, data, run, resolve_only=resolve_only, is_quiet=resolve_only or json)
        except signals.Stopped as stopped:
            if _is_first_rank():
                print(stopped, file=sys.stderr, flush=True)
                if json:
                    console.print_json({"run": str(run), "stopped_by": stopped.name, "step": stopped.step})
            raise typer.Exit(stopped.exit_code) from None
    if _is_first_rank() and (resolve_only or json):
        console.print_json(result)


def _train(*args: Any, resolve_only: bool, is_quiet: bool) -> dict[str, Any]:
    """`training.loop.train`; `is_quiet` keeps what libraries print off stdout."""
    from mri_ds.training.loop import train as run_training

    if not is_quiet:
        return run_training(*args)
    with console.stdout_for_result():
        return run_training(*args, resolve_only=resolve_only)


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
