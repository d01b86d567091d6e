"""The command `report`: a run on one page that needs no network, and its model card."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `mri-ds train` or `mri-ds cross-validate`.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="HTML", help="Default: RUN/report.html.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of shards. Default: where the training found them.")] = None,
    maps: Annotated[
        Path | None, typer.Option("--maps", metavar="DIR", help="NIfTI maps to show, as of experts. Default: RUN/explain.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option("--watts", min=0, help="Power of one rank's device, for the energy estimate.")
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Pictures of subjects and the 3-D viewer.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers of the page as one JSON object.")] = False,
) -> None:
    """Write one HTML file about a run: data, curves, figures, cases in 3-D, failures, calibration, cost; and its model card.

    The file opens in any browser without a network. Evaluate the run first; `mri-ds calibrate` and `mri-ds explain` add to it.
    RUN/model_card.md and .json are written beside it; answers of people come from RUN/card_answers.yaml, `item: answer` a line.

    Example: `mri-ds report runs/first --out report.html`
    """
    path = out if out is not None else run / "report.html"
    if path.is_dir():
        raise InputError("is a folder", where=path, fix="name a file, as report.html")
    for given, name in ((data, "--data"), (maps, "--maps")):
        if given is not None and not given.is_dir():
            raise InputError("is not a folder", where=given, fix=f"give an existing one as {name}, or leave it out")
    with console.stdout_for_result():
        from mri_ds.report.write import write_report

        if out is not None:
            console.output_folder(path.parent)
        with console.progress("report: cases") as progress:
            told = write_report(run, path, data=data, map_folder=maps, watts=watts, with_images=images, progress=progress)
    if json:
        console.print_json(told)
        return
    for note in told["notes"]:
        print(note)
    if told["viewer"] is not True and images and told["evaluated"]:
        print(told["viewer"])
    print(f"Model card: {told['card']} ({told['open_items']} items to be filled by people)")
    print(f"Report: {told['report']}")
