"""The command `train`; `deepspeed [launcher options] launch/train.py` is the same command on many ranks.

Here only the defaults are decided: which scale, which DeepSpeed JSON, which folders. `training.loop.train` does the work.
"""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.cli.resume import launch_of
from mri_ds.config import SCALES
from mri_ds.errors import InputError

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def train(
    ds_config: Annotated[
        Path | None, typer.Option("--ds_config", "--ds-config", help="DeepSpeed JSON: speed. Default: ds_configs/SCALE.json.")
    ] = None,
    scale: Annotated[
        str | None,
        option_of("--scale", SCALES, " Default: the JSON's file name."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of shards: a path or a URL. Default: shards.")] = None,
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
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=1, help="Processes on this machine. Default: one per GPU; without GPUs one per NUMA node."),
    ] = None,
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, help="After a failure, start again from the last checkpoint, up to so many times.")
    ] = 0,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this run as it was started, on any number of ranks."),
    ] = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option(
            "--skip-corrupt",
            help="Go on where a subject's bytes are damaged or gone: masked, counted and named. Up to a tenth of a split.",
        ),
    ] = False,
    profile: Annotated[
        str, typer.Option("--profile", metavar="STEPS", help="Trace these steps into RUN/profile, as 20-22 or 5,20.")
    ] = "",
    resolve_only: Annotated[bool, typer.Option("--resolve-only", help="Print what would run, as JSON, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the final figures as one JSON object on stdout.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Train, or resume, one run, on all devices of this machine. The same command under `deepspeed` trains on several machines.

    Example: `mri-ds train --scale small --data shards --run runs/first --set training.steps=200`

    With ZeRO-2 in float32: `mri-ds train --ds zero_optimization.stage=2 --ds bf16.enabled=false`

    On 2 ranks of a CPU, started again if one fails: `mri-ds train --scale small --ranks 2 --restarts 3`
    """
    sets = [*(overrides or []), *(["data.skip_unreadable=true"] if skip_corrupt else [])]
    asked = _settle(Asked(config, sets, ds_overrides or [], profile), resume, scale, ds_config, data, run)
    if resolve_only:
        _answer_for(ranks)
        console.print_json(_run_quietly(asked, resolve_only=True)) if _is_first_rank() else None
    else:
        _start(asked, ranks, restarts, as_json=json)


@dataclass(frozen=True)
class Asked:
    """What to train, as the command line says it; the last four are settled by its defaults."""

    config: Path | None
    sets: list[str]
    ds_sets: list[str]
    profile: str
    scale: str = ""
    ds_config: Path = Path()
    data: Path = Path("shards")
    run: Path = Path()

    def options(self) -> list[str]:
        """The command line of a rank that does what this one was asked for."""
        options = [f"--scale={self.scale}", f"--ds_config={self.ds_config}", f"--data={self.data}", f"--run={self.run}"]
        options += [f"--config={self.config}"] if self.config else []
        options += [f"--set={item}" for item in self.sets] + [f"--ds={item}" for item in self.ds_sets]
        return options + ([f"--profile={self.profile}"] if self.profile else [])


def _settle(
    asked: Asked, resume: Path | None, scale: str | None, ds_config: Path | None, data: Path | None, run: Path | None
) -> Asked:
    if resume is not None:
        was, run = launch_of(resume), resume
        asked = replace(asked, config=was.config)
        scale, ds_config, data = was.scale, ds_config or was.ds_config, data or was.data
    scale = one_of(scale, SCALES, "--scale") or _scale_of(ds_config) or _scale_in(asked)
    ds_config, run = ds_config or DS_CONFIGS / f"{scale}.json", run or Path("runs") / scale
    return replace(asked, scale=scale, ds_config=ds_config, data=data or asked.data, run=run)


def _start(asked: Asked, ranks: int | None, restarts: int, *, as_json: bool) -> None:
    """Starts the ranks, or is one of them."""
    from mri_ds.config import load_config

    # before seconds of imports, because it names a misspelt key
    training = load_config(asked.config, overrides=asked.sets, scale=asked.scale).training
    from mri_ds.training import local_ranks

    is_launched = local_ranks.is_started_by_a_launcher(os.environ)
    if is_launched and (ranks or restarts):
        raise InputError("is for ranks that mri-ds starts itself", where="--ranks" if ranks else "--restarts", fix="leave it out")
    count = 1 if is_launched else ranks or local_ranks.choose(training.global_batch)
    if count > 1 or restarts:
        from mri_ds.training.supervisor import Supervisor

        command = ["-m", "mri_ds", "train", *asked.options(), *(["--json"] if as_json else [])]
        raise typer.Exit(Supervisor(command, ranks=count, restarts=restarts, timeout_s=training.timeout_s).run())
    _train(asked, timeout_s=training.timeout_s, is_rank=is_launched, as_json=as_json)


def _train(asked: Asked, *, timeout_s: float, is_rank: bool, as_json: bool) -> None:
    """This process's part: all of the run, or that of one rank. Exits with the code that tells how it ended."""
    from mri_ds.training import heart, launchers, signals

    launchers.adopt()  # so that the heart knows its rank, whoever started it
    # both before imports that take seconds
    with signals.listening(), heart.beating(asked.run, timeout_s) if is_rank else nullcontext():
        try:
            result = (_run_quietly if as_json else _run)(asked)
        except signals.Stopped as stopped:
            if _is_first_rank():
                print(stopped, file=sys.stderr, flush=True)
                if as_json:
                    console.print_json({"run": str(asked.run), "stopped_by": stopped.name, "step": stopped.step})
            raise typer.Exit(stopped.exit_code) from None
        except InputError as err:
            if heart.is_supervised():
                heart.tell("input", str(err))
                raise typer.Exit(2) from None
            raise
        except Exception as err:
            if is_rank:
                heart.fail(err)
            raise
    if as_json and _is_first_rank():
        console.print_json(result)


def _run(asked: Asked, **how: Any) -> dict[str, Any]:
    from mri_ds.training.loop import train as run_training

    what = (asked.config, asked.sets, asked.scale, asked.ds_config, asked.data, asked.run)
    return run_training(*what, ds_overrides=asked.ds_sets, profile=asked.profile, **how)


def _run_quietly(asked: Asked, **how: Any) -> dict[str, Any]:
    with console.stdout_for_result():
        return _run(asked, **how)


def _answer_for(ranks: int | None) -> None:
    """`--resolve-only` tells of the world that a launcher or `--ranks` says."""
    if ranks:
        os.environ["WORLD_SIZE"] = str(ranks)


def _scale_in(asked: Asked) -> str:
    from mri_ds.config import load_config  # a fifth of a second, which `mri-ds --help` does without

    return load_config(asked.config, overrides=asked.sets).model.scale


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
