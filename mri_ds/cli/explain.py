"""The command `explain`: why a run predicts what it does, as maps on the input's own grid, curves and a matrix."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.results import Json


def explain(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="RUN", help="Run folder, checkpoint or weights: one network.")
    ],
    inputs: Annotated[
        list[Path], typer.Option("--input", metavar="PATH", help="Images or datasets, as for `predict`; more may follow.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write into.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Further inputs.", show_default=False)] = None,
    what: Annotated[
        str, typer.Option("--what", metavar="KINDS", help="Some of rollout,occlusion,gradients,experts,kan,tasks. Default: all.")
    ] = "",
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="What is explained. Default: every task.")] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Of --task. Default: the class predicted, or all structures together."),
    ] = None,
    occluder: Annotated[
        str | None,
        typer.Option("--occluder", metavar="EDGE", help="Of the covering box, 20mm or 8vox. Default: a quarter of a window."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Of the path that gradients are integrated along.")] = 50,
    overlap: Annotated[
        float | None, typer.Option("--overlap", min=0, max=0.95, help="Of windows. Default: the config's.")
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", metavar="NAME=PATTERN", help="Of DICOM studies: the series of each channel."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make also what is there already.")] = False,
    json: Json = False,
) -> None:
    """Explain predictions: maps of attention, occlusion, gradients and experts, curves of heads, what tasks read of one another.

    Maps are NIfTI on each input's own grid, in units: mL of a structure, a class's probability, a value's own. DIR/explain.json
    lists all files. What is there already is skipped, and a call that was cut short goes on where it was. Gradients need
    `pip install 'mri_ds[explain]'`. mri_ds/inference/README.md says what each map means and what it does not.

    Example: `mri-ds explain --checkpoint runs/first --output why --what rollout,experts --input scan.nii.gz`
    """
    console.output_folder(output)
    with console.stdout_for_result():
        from mri_ds.data.layouts.studies import parse_series, series_of_channels
        from mri_ds.inference.explain.explain import INDEX
        from mri_ds.inference.explain.explain import explain as run_explain
        from mri_ds.inference.explain.wanted import Wanted, choose_kinds
        from mri_ds.inference.run import load_run

        run = load_run(checkpoint, flip_axes=[])
        asked = [kind.strip() for kind in what.split(",") if kind.strip()]
        kinds, notes = choose_kinds(run, asked)
        wanted = Wanted(kinds, task, class_name, overlap, occluder, steps, again)
        chosen = series_of_channels(parse_series(series or []), run.channels)
        result = run_explain(run, [*inputs, *(more or [])], output, wanted, series=chosen, watch=_bar)
    for line in [*notes, *result.left_out, *_rough(result.subjects)]:
        print(f"note: {line}", file=sys.stderr)
    skipped = sum(len(one["skipped"]) for one in result.subjects)
    if skipped:
        print(f"note: {skipped} explanations done before, skipped; --again makes them once more", file=sys.stderr)
    code = (2 if result.all_bad_input else 1) if result.failed else 0
    if code != 2 and json:
        console.print_json({**result.as_dict(), "index": str(output / INDEX)})
    elif code != 2:
        print("\n".join(str(output / name) for name in [*result.files(), INDEX]))
    total = len(result.subjects) + len(result.failed)
    for name, reason in result.failed.items():
        print(f"error: {reason}" if total == 1 else f"error: {name}: {reason}", file=sys.stderr)
    if code:
        raise typer.Exit(code)


def _rough(subjects: list[dict[str, Any]]) -> Iterator[str]:
    """A line about each integral that does not add up well."""
    for told in subjects:
        entry = told["explanations"].get("gradients", {"maps": []})
        for one in (one for one in entry["maps"] if one["is_rough"]):
            share = abs(one["gap"]) / (abs(one["value"] - one["baseline_value"]) or 1)
            steps = entry["settings"]["steps"]
            yield f"gradients of {told['subject_id']} {one['task']}: off by {share:.0%} with {steps} steps; --steps takes more"


def _bar(name: str) -> AbstractContextManager[console.Progress]:
    return console.progress(f"explain {name}")
