"""The command `calibrate`: how far a run's predictions can be trusted, measured on subjects that it was not trained on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console


def calibrate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", metavar="RUN", help="Run folder that `mri-ds train` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of shards.")] = Path("shards"),
    split: Annotated[str, typer.Option("--split", help="Default: the first of val, validation and test that there is.")] = "",
    coverage: Annotated[float, typer.Option("--coverage", help="How often sets and intervals shall hold the truth, 0..1.")] = 0.9,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Fit temperatures, sets, intervals and a quality score on held-out subjects, and write RUN/calibration.json for `predict`.

    What it was fitted on is no test of it: for honest coverage, evaluate on other subjects.

    Example: `mri-ds calibrate --checkpoint runs/first --data shards --coverage 0.95`
    """
    with console.stdout_for_result():
        from mri_ds.evaluation.calibrate import calibrate as fit
        from mri_ds.evaluation.calibrate import write_calibration
        from mri_ds.inference.run import load_run

        run = load_run(checkpoint)
        with console.progress("calibrate") as report:
            fitted = fit(run, data, split=split, coverage=coverage, progress=report)
        path = write_calibration(checkpoint, fitted)
    if json:
        console.print_json({**fitted, "file": str(path)})
    else:
        _tell(fitted)
        print(f"fitted on {len(fitted['subjects'])} subjects of split {fitted['split']}: {path}")


def _tell(fitted: dict[str, Any]) -> None:
    share = f"{100 * fitted['coverage']:g} %"
    for name, task in fitted["tasks"].items():
        if task["kind"] == "regression":
            width = f"-+ {task['half_width'] or 0:.3g} {task['unit']} holds the truth in {share}"
            print(f"{name}: {'too few subjects for an interval' if task['half_width'] is None else width}")
            continue
        before, after = (task["nll"][key] for key in ("before", "after"))
        likelihood = "" if before is None else f", log loss {before:.4f} -> {after:.4f}"
        print(f"{name}: temperature {task['temperature']:.3f}{likelihood}")
        if task["kind"] == "classification":
            print(f"  classes of probability {task['threshold']:.3f} and more hold the truth in {share}")
        for label, volume in task.get("volume_ml", {}).items():
            width = "too few subjects for an interval"
            if volume["relative"] is not None:
                width = f"-+ {100 * volume['relative']:.0f} % of (volume + {volume['offset_ml']:.3g} mL) in {share}"
            r = task["quality_rank_correlation"][label]
            print(f"  {label}: volume {width}" + (f"; quality score and Dice: rank correlation {r:.2f}" if r is not None else ""))
