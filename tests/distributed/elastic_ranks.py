"""What single ranks of tests do with an engine of their own; functions that forked.py starts by their name."""

import json
from pathlib import Path

import launches


def load_universal(folder: Path, run: Path, out: Path) -> None:
    """DeepSpeed's own loading of FOLDER/step10 into the run's network; its weights then, in `out`."""
    from mri_ds.training.checkpoint import export

    engine = build(run, checkpoint={"load_universal": True})
    before = [group["weight_decay"] for group in engine.optimizer.param_groups]
    engine.load_checkpoint(str(folder), tag="step10")
    after = [group["weight_decay"] for group in engine.optimizer.param_groups]
    (out.parent / "decays.json").write_text(json.dumps({"before": before, "after": after}))
    (out.parent / "exported").mkdir()
    export(engine, out.parent / "exported")
    (out.parent / "exported/model.safetensors").rename(out)


def build(run: Path, **more):
    """An engine of one rank for the run's network, ZeRO-3."""
    from mri_ds.config import load_config
    from mri_ds.training import distributed, ds_config
    from mri_ds.training.engine import build_engine, build_objective

    distributed.start(600)
    config = load_config(run / "config.yaml")
    raw = {**json.loads((launches.ROOT / "ds_configs/tiny.json").read_text()), **more}
    return build_engine(build_objective(config), ds_config.resolve(raw, config, world_size=1))


def resume_each(runs: dict[str, Path]) -> None:
    """Prints a line NAME<tab>ERROR for each run that is refused."""
    from mri_ds.config import load_config
    from mri_ds.errors import CorruptError
    from mri_ds.training.checkpoint import Checkpoints

    some = next(iter(runs.values()))
    engine = build(some)
    for name, run in runs.items():
        try:
            Checkpoints(engine, run, load_config(run / "config.yaml").training).resume(lambda data: None)
        except CorruptError as err:
            print(f"{name}\t{err}", flush=True)


def write_together(run: Path) -> None:
    """Two checkpoints of three ranks: all can write the first; rank 1 cannot write its file of the second."""
    import torch

    from mri_ds.errors import RunError
    from mri_ds.training import distributed
    from mri_ds.training.checkpoint import folder as on_disk
    from mri_ds.training.checkpoint.writer import Writer

    torch.distributed.init_process_group("gloo")
    writer, rank = Writer(), distributed.rank()
    for step, name in ((1, f"rank{rank}.pt"), (2, f"rank{rank}.pt" if rank != 1 else "no_such_folder/rank1.pt")):
        part = on_disk.folder_of(run, step).with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        distributed.barrier()

        def commit(files, part=part, step=step):
            on_disk.commit(part, files, {"step": step})

        writer.submit(part, {name: torch.full((1000,), float(rank))}, commit)
        try:
            writer.wait()
            print(f"rank {rank}\tstep {step} is complete", flush=True)
        except RunError as err:
            print(f"rank {rank}\t{err}", flush=True)
    if rank == 0:
        return  # and takes the store along: nobody may need it any more
    torch.distributed.destroy_process_group()
