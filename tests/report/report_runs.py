"""Run folders as training and evaluation leave them, with small untrained networks."""

import json
from pathlib import Path

HOSTILE = "<script>document.title='owned'</script>"
IMAGE = "'><img src=x onerror=document.title='owned'>"


def make_run(folder: Path, shards: Path, *, only: tuple[str, ...] = (), evaluated: bool = True, seed: int = 0) -> Path:
    """A run of `shards` with the tasks `only` (all), its log written by the Tracker, its figures by `evaluate`."""
    import networks

    from mri_ds.data.manifest import read_manifest, write_manifest
    from mri_ds.evaluation.evaluate import evaluate
    from mri_ds.evaluation.files import write_files
    from mri_ds.inference.run import load_run
    from mri_ds.training.tracker import Tracker

    manifest = read_manifest(shards)
    tasks = {name: task for name, task in manifest.tasks.items() if not only or name in only}
    networks.write_run(folder, seed=seed, spacing_mm=(1.0, 1.0, 1.5), tasks=tasks)
    write_manifest(manifest, folder / "manifest.json")
    (folder / "launch.json").write_text(json.dumps({"scale": "tiny", "data": str(shards)}))
    (folder / "micro_batch.json").write_text(json.dumps({"micro_batch": 2, "ranks": 2}))
    tracker = Tracker(folder, is_writer=True)
    for step in (10, 20, 40):
        rates = {"throughput/step_s": step / 10, "throughput/flops_per_s": 1e9, "throughput/share_of_peak": 0.25}
        loads = {"expert_load/layer0": 1.5, "expert_load/layer0/ball": 1.4}
        tracker.scalars(step, {"loss": 30 / step, **{f"loss/{name}": 10 / step for name in tasks}, **rates, **loads})
    tracker.close()
    if evaluated:
        (folder / "evaluation").mkdir()
        write_files(evaluate(load_run(folder), shards), folder / "evaluation")
    return folder
