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

    distributed.start()
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
