"""The commands `predict` (from image files to files, by a run or several) and `cleanup` (what it takes out of label maps)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mri_ds.cli import console
from mri_ds.cli.results import Checkpoint, Json, KeepSmallParts
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.inference.predict import Results


def predict(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            "--checkpoint", metavar="RUN", help="Run folder, checkpoint, weights or folder of folds. Several: averaged."
        ),
    ],
    inputs: Annotated[
        list[Path],
        typer.Option("--input", metavar="PATH", help="NIfTI, DICOM (file, folder, zip), BIDS, MSD, CSV; more may follow."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write into.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Further inputs.", show_default=False)] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series", metavar="NAME=PATTERN", help="Of DICOM studies: the series of each channel, as for `mri-ds shard`."
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write every class's probabilities too, as 4-D NIfTI.")
    ] = False,
    entropy: Annotated[bool, typer.Option("--entropy", help="Write how undecided each voxel is too, 0..1, as NIfTI.")] = False,
    coverage: Annotated[
        float | None,
        typer.Option("--coverage", help="How often sets and intervals shall hold the truth. Default: as calibrated."),
    ] = None,
    look_below: Annotated[
        float, typer.Option("--look-below", min=0, max=1, help="Name structures whose expected Dice is lower at the end.")
    ] = 0.7,
    tta: Annotated[
        str | None, typer.Option("--tta", metavar="AXES", help="Average over flips: 0 left-right, 1, 2; as 1,2 or none.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", min=0, max=0.95, help="Of windows. Default: the config's.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Predict also what is done already.")] = False,
    keep_small_parts: KeepSmallParts = False,
    json: Json = False,
) -> None:
    """Predict images: a label map on each input's own grid, a JSON of all tasks, a picture, a table of volumes.

    PATH is an image, a folder of images or a dataset: BIDS, MSD, nnU-Net, WebDataset tars, a CSV table. For a network of several
    channels give any one file of a subject, SUBJECT_CHANNEL.nii.gz: it finds the others beside it. DICOM is a folder or zip of
    one series, or with --series of a whole study; its label maps are written as DICOM SEG too. What is done is skipped. Exit code
    1 when some subjects failed, which are named at the end. Under torchrun or deepspeed the ranks share the work.

    After `mri-ds calibrate` the JSON has intervals of volumes and values, sets of classes and the Dice to be expected of each
    structure; those of whom little is to be expected are named at the end, to be looked at first.

    Example: `mri-ds predict --checkpoint runs/first --output predictions --entropy --coverage 0.9 --input images/*_T1w.nii.gz`
    """
    console.output_folder(output)
    flip_axes = None if tta is None else _axes(tta)
    with console.stdout_for_result():
        from mri_ds.data.layouts.studies import parse_series, series_of_channels
        from mri_ds.inference.predict import Choices, load_run
        from mri_ds.inference.predict import predict as run_predict
        from mri_ds.training.shared_windows import Ranks

        with Ranks() as ranks:
            device = ranks.device if ranks.world_size > 1 else None
            run = load_run(checkpoint, device, flip_axes=flip_axes, coverage=coverage)
            chosen = series_of_channels(parse_series(series or []), run.channels)
            choices = Choices(overlap, keep_small_parts, probabilities, entropy, again)
            with console.progress("predict") as report:
                heard = report if ranks.rank == 0 else None
                paths = [*inputs, *(more or [])]
                results = run_predict(run, paths, output, series=chosen, choices=choices, ranks=ranks, progress=heard)
            is_first = ranks.rank == 0
    code = _exit_code(results)
    if is_first:
        _tell(results, code, look_below, as_json=json)
    if code:
        raise typer.Exit(code)


def cleanup(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option("--data", help="Folder of shards.")] = Path("shards"),
    split: Annotated[
        str | None, typer.Option("--split", help="Held-out subjects to choose on. Default: the shards' validation split.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose the classes of which predictions keep the largest connected part alone: those whose validation Dice it raises.

    Writes RUN/cleanup.json, which `predict` follows. Report no figure on the subjects that it was chosen on.

    Example: `mri-ds cleanup --checkpoint runs/first --data shards --split val`
    """
    with console.stdout_for_result():
        from mri_ds.inference.cleanup_choice import choose_cleanup

        with console.progress("cleanup") as report:
            chosen = choose_cleanup(checkpoint, data, split=split, progress=report)
    if json:
        console.print_json(chosen)
        return
    for task, classes in chosen["dice"].items():
        for name, (before, after) in classes.items():
            kept = "largest part alone" if name in chosen["keep_largest"].get(task, []) else "as it is"
            print(f"{task + '/' + name:<32}Dice {before:.4f}, largest part alone {after:.4f}: {kept}")


def _exit_code(results: "Results") -> int:
    """0: all done; 2: bad input, and nothing could be done; 1: some failed."""
    if not results.failed:
        return 0
    return 2 if results.all_bad_input else 1


def _tell(results: "Results", code: int, look_below: float, *, as_json: bool) -> None:
    if as_json and code != 2:
        console.print_json({**results.as_dict(), "look_first": results.look_first(look_below)})
    elif code != 2:
        for one in results.subjects:
            print("\n".join(one["files"].values()))
        if results.volumes:
            print(results.volumes)
    for line in results.left_out:
        print(f"note: {line}", file=sys.stderr)
    if results.skipped:
        print(f"note: {len(results.skipped)} done before, skipped; --again predicts them once more", file=sys.stderr)
    if suspects := results.look_first(look_below):
        print(f"look at these first, whose expected Dice is below {look_below:g}:", file=sys.stderr)
    for one in suspects:
        print(f"  {one['subject_id']}: {one['task']}/{one['class']} {one['dice']:.2f}", file=sys.stderr)
    total = len(results.subjects) + len(results.failed)
    if code == 1 or len(results.failed) > 1:
        print(f"error: {len(results.failed)} of {total} subjects failed", file=sys.stderr)
    for name, reason in results.failed.items():
        print(f"error: {reason}" if total == 1 else f"  {name}: {reason}", file=sys.stderr)


def _axes(text: str) -> list[int]:
    """As "0,2" -> [0, 2]; "none" -> []."""
    parts = [] if text.strip().lower() in ("none", "") else text.split(",")
    if not all(part.strip() in ("0", "1", "2") for part in parts):
        raise InputError(f"--tta {text!r} is no list of axes", fix="write 0 (left-right), 1 and 2, as 1,2; or none")
    return [int(part) for part in parts]
