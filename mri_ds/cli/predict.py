"""The command `predict`: from image files to files, by a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.cli.results import Checkpoint, Json, KeepSmallParts
from mri_ds.errors import InputError


def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[list[Path], typer.Option("--input", metavar="PATH", help="NIfTI file; more may follow it.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write into.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Further NIfTI files.", show_default=False)] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series", metavar="NAME=PATTERN", help="Of DICOM studies: the series of each channel, as for `mri-ds shard`."
        ),
    ] = None,
    keep_small_parts: KeepSmallParts = False,
    json: Json = False,
) -> None:
    """Predict NIfTI files: a label map on each input's own grid, a JSON of the other tasks, a picture.

    For a network of several channels give any one file of a subject, SUBJECT_CHANNEL.nii.gz: it finds the others beside it. DICOM
    is read too: a folder or zip of one series, or with --series of a whole study.

    Example: `mri-ds predict --checkpoint runs/first --output predictions --input images/*_T1w.nii.gz`
    """
    console.output_folder(output)
    with console.stdout_for_result():
        from mri_ds.data.layouts.studies import parse_series, series_of_channels
        from mri_ds.inference.predict import load_run, predict_file

        run = load_run(checkpoint)
        chosen = series_of_channels(parse_series(series or []), run.channels)
        subjects = _one_per_subject([*inputs, *(more or [])], run.channels)
        results = []
        with console.progress("predict") as report:
            for path in subjects:
                results.append(predict_file(run, path, output, keep_small_parts=keep_small_parts, series=chosen))
                report(len(results), len(subjects))
    if json:
        console.print_json({"subjects": results})
        return
    for result in results:
        print("\n".join(result["files"].values()))


def _one_per_subject(paths: list[Path], channels: list[str]) -> list[Path]:
    """One path for each subject: the files of its other channels are read with it. Refuses two subjects of one name."""
    from mri_ds.inference.predict import find_channels

    chosen: dict[str, tuple[Path, list[Path]]] = {}
    for path in paths:
        subject_id, images = find_channels(path, channels)
        first, known = chosen.setdefault(subject_id, (path, images))
        if known != images:
            raise InputError(f"would overwrite the results of {first}", where=path, fix="predict them into separate folders")
    return [path for path, _ in chosen.values()]
