"""The whole main job, made of the project's own commands, each printed before it runs.

synthetic subjects (or --data DIR) -> shards -> training on 2 ranks -> evaluation on held-out subjects -> one prediction
-> a report, a table, a picture, the TensorBoard command and, as the last line, `SUMMARY {json}` (also RUN/summary.json).

The same command again: unchanged data are reused, an interrupted training goes on from its last checkpoint, a complete run is
made anew. Ctrl-C leaves nothing running. Started by tools/demo.sh, which sets everything up.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import supervise
from run_folder import Clock, Failed, prepare, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = 60
SIZE = 64  # voxels along each axis of a synthetic subject
SEED = 0
SCALE = "small"
RANKS = 2


@dataclass(frozen=True)
class Plan:
    """Where everything lies and what is asked for. `dataset` is made by the demo itself when `is_synthetic`."""

    dataset: Path
    folder: Path  # of what the demo makes of the data
    run: Path
    config: Path
    scale: str
    sets: tuple[str, ...]
    subjects: int
    size: int
    is_synthetic: bool

    @property
    def shards(self) -> Path:
        return self.folder / "shards"


def main() -> None:
    options = parse(sys.argv[1:])
    supervise.take_charge()
    try:
        demo(plan_of(options), setup_s=options.setup_seconds)
    except Failed as err:
        print(f"\ndemo: {err}", file=sys.stderr, flush=True)
        sys.exit(err.exit_code)
    except supervise.Stopped as stop:
        supervise.end_all()
        print(f"\ndemo: stopped by {stop}; nothing is left running. The same command goes on.", file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)


def demo(plan: Plan, *, setup_s: float) -> None:
    """The main job from the first to the last line."""
    data_stamp = stamp_of_data(plan)
    started_with = {"data": data_stamp, "training": stamp_of_training(plan)}
    say(prepare(plan.run, started_with))
    clock = Clock(plan.run, started_with)
    clock.add("setup", setup_s)
    say(f"each command below can be typed in {ROOT} after `. .venv/bin/activate`")
    with clock.stage("data"):
        make_data(plan, data_stamp, clock)
    with clock.stage("train"):
        train(plan, clock)
    with clock.stage("evaluate"):
        evaluation = evaluate(plan, clock)
        predict(plan, evaluation, clock)
        report(plan, clock)
    tell(plan, evaluation, clock)


def parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/demo.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset in MSD layout or a NIfTI folder; default: synthetic subjects")
    parser.add_argument("--run", type=Path, help="run folder; default: runs/demo, or runs/NAME of --data .../NAME")
    parser.add_argument("--config", type=Path, help="YAML; default: tools/demo_synthetic.yaml or tools/demo_dataset.yaml")
    parser.add_argument("--steps", type=int, help="training steps; default: the YAML's")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as of `mri-ds train`")
    parser.add_argument("--scale", default=SCALE, help=f"default: {SCALE}")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help=f"synthetic subjects; default: {SUBJECTS}")
    parser.add_argument("--size", type=int, default=SIZE, help=f"voxels along an axis of theirs; default: {SIZE}")
    parser.add_argument("--setup-seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(args)


def plan_of(options: argparse.Namespace) -> Plan:
    """Options -> Plan. Paths are relative to where the user is; what the demo makes itself lies in the checkout."""
    is_synthetic = options.data is None
    name = "demo" if is_synthetic else options.data.resolve().name.lower()
    folder = ROOT / "data" / name
    if not is_synthetic and not options.data.is_dir():
        raise Failed(f"--data {options.data} is not a folder", exit_code=2)
    return Plan(
        dataset=folder / "subjects" if is_synthetic else options.data.resolve(),
        folder=folder,
        run=(options.run or ROOT / "runs" / name).resolve(),
        config=(options.config or ROOT / "tools" / ("demo_synthetic.yaml" if is_synthetic else "demo_dataset.yaml")).resolve(),
        scale=options.scale,
        sets=(*options.sets, *([f"training.steps={options.steps}"] if options.steps else [])),
        subjects=options.subjects,
        size=options.size,
        is_synthetic=is_synthetic,
    )


# ---------------------------------------------------------------- what may be reused


def stamp_of_data(plan: Plan) -> dict[str, Any]:
    """What the shards are made of: equal stamps, equal shards."""
    code = [path.read_bytes() for path in sorted((ROOT / "mri_ds" / "data").rglob("*.py"))]
    if plan.is_synthetic:
        source: dict[str, Any] = {"subjects": plan.subjects, "size": plan.size, "seed": SEED}
    else:
        files = [(path, path.stat()) for path in sorted(plan.dataset.rglob("*")) if path.is_file()]
        listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files)
        source = {"dataset": str(plan.dataset), "files": _hash(listing.encode())}
    return {**source, "code": _hash(*code)}


def stamp_of_training(plan: Plan) -> dict[str, Any]:
    files = [path for path in (plan.config, ds_config(plan)) if path.is_file()]
    return {"scale": plan.scale, "sets": list(plan.sets), "configs": _hash(*(path.read_bytes() for path in files))}


# ---------------------------------------------------------------- the stages


def make_data(plan: Plan, stamp: Mapping[str, Any], clock: Clock) -> None:
    """Subjects and shards, unless the same are there. The stamp is written last: an interrupted start is done again."""
    if read_json(plan.folder / "stamp.json") == stamp and (plan.shards / "manifest.json").is_file():
        say(f"{_show(plan.shards)} is up to date: reusing it")
        return
    (plan.folder / "stamp.json").unlink(missing_ok=True)
    if plan.is_synthetic:
        shutil.rmtree(plan.dataset, ignore_errors=True)
        how = ["--subjects", str(plan.subjects), "--size", str(plan.size), "--seed", str(SEED)]
        run_stage("data", ["mri-ds", "synthesize", "--out", _show(plan.dataset), *how], clock)
    run_stage("data", ["mri-ds", "shard", _show(plan.dataset), "--out", _show(plan.shards)], clock)
    write_json(plan.folder / "stamp.json", stamp)


def train(plan: Plan, clock: Clock) -> None:
    """Trains to the end or raises Failed. Only the exported weights prove an end: the launcher can return 0 after a failure."""
    weights = plan.run / "model.safetensors"
    if weights.is_file():
        say(f"{_show(weights)} is there: training is done")
        return
    ranks, port = min(RANKS, machine.num_gpus() or RANKS), machine.free_port()
    launcher = ["deepspeed", "--log_level", "warning", "--num_accelerators", str(ranks), "--master_port", str(port)]
    science = ["--scale", plan.scale, "--config", _show(plan.config), *(f"--set={item}" for item in plan.sets)]
    folders = ["--data", _show(plan.shards), "--run", _show(plan.run)]
    command = [*launcher, "launch/train.py", "--ds_config", _show(ds_config(plan)), *science, *folders]
    threads = {"OMP_NUM_THREADS": str(max(1, machine.num_cores() // ranks))}
    try:
        run_stage("train", command, clock, extra_env=threads)
    except Failed as err:
        raise Failed(f"{err}. The same command resumes from the last checkpoint, if there is one", err.exit_code) from None
    finally:
        machine.remove_shared_buffers(port)
    if not weights.is_file():
        raise Failed(f"train ended without {_show(weights)}: see the messages above")


def evaluate(plan: Plan, clock: Clock) -> dict[str, Any]:
    result = plan.run / "evaluation.json"
    what = ["--checkpoint", _show(plan.run), "--data", _show(plan.shards), "--picture", _show(plan.run / "picture.png")]
    run_stage("evaluate", ["mri-ds", "evaluate", *what, "--json"], clock, stdout_to=result)
    return read_json(result)


def predict(plan: Plan, evaluation: dict[str, Any], clock: Clock) -> None:
    """One held-out subject from its own NIfTI files, as a user would."""
    image = held_out_image(plan, evaluation)
    what = ["--checkpoint", _show(plan.run), "--output", _show(plan.run / "predictions")]
    run_stage("evaluate", ["mri-ds", "predict", *what, "--input", _show(image)], clock)


def report(plan: Plan, clock: Clock) -> None:
    """The run on one page; the model card lies beside it."""
    what = [_show(plan.run), "--out", _show(plan.run / "report.html"), "--data", _show(plan.shards)]
    run_stage("evaluate", ["mri-ds", "report", *what], clock)


def tell(plan: Plan, evaluation: dict[str, Any], clock: Clock) -> None:
    """Table, picture, TensorBoard command; the last line is the SUMMARY."""
    from mri_ds.evaluation.table import print_result

    seconds = {**clock.seconds, "total": sum(clock.seconds.values())}
    summary = summarise(evaluation, seconds)
    write_json(plan.run / "summary.json", summary)
    print(flush=True)
    print_result(evaluation)
    print(f"\nPicture:      {plan.run / 'picture.png'}")
    print(f"Prediction:   {plan.run / 'predictions'}")
    print(f"Report:       {plan.run / 'report.html'}")
    print(f"TensorBoard:  {ROOT / '.venv/bin/tensorboard'} --logdir {plan.run}")
    print(f"SUMMARY {json.dumps(summary)}", flush=True)


def summarise(evaluation: dict[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The headline figures of each task, by its kind, and where the time went."""
    return {
        "tasks": {name: headline(figures) for name, figures in evaluation["tasks"].items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    if figures["kind"] == "segmentation":
        return {"dice_mean": figures["dice_mean"], "dice": figures["dice"]}
    if figures["kind"] == "classification":
        return {"balanced_accuracy": figures["balanced_accuracy"]}
    return {"mae": figures["mae"], "mae_constant": figures["constant"]["mae"]}


def held_out_image(plan: Plan, evaluation: dict[str, Any]) -> Path:
    """The first image file of the first evaluated subject; `predict` finds its other channels beside it."""
    from mri_ds.data.layouts import find_dataset

    wanted = evaluation["subjects"][0]["subject_id"]
    return next(files.images[0] for files in find_dataset(plan.dataset).subjects if files.subject_id == wanted)


# ---------------------------------------------------------------- commands and the machine


def run_stage(
    stage: str,
    command: Sequence[str],
    clock: Clock,
    *,
    stdout_to: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> None:
    """Prints the command as it can be typed, runs it, raises Failed with its exit code unless that is 0."""
    variables = {**(extra_env or {}), **({} if machine.num_gpus() else {"DS_ACCELERATOR": "cpu"})}
    typed = [*(f"{name}={value}" for name, value in variables.items()), shlex.join(command)]
    redirect = f" > {_show(stdout_to)}" if stdout_to is not None else ""
    print(f"\n$ {' '.join(typed)}{redirect}", flush=True)
    code = supervise.run(command, cwd=ROOT, env=machine.environment(variables), stdout_to=stdout_to, tick=clock.tick)
    if code:
        raise Failed(f"stage {stage} failed: `{command[0]}` ended with exit code {code}", exit_code=code)


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def ds_config(plan: Plan) -> Path:
    return ROOT / "ds_configs" / f"{plan.scale}.json"


def _show(path: Path) -> str:
    """As typed in ROOT: relative where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
