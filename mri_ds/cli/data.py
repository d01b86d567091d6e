"""Commands that make the data: `synthesize` (NIfTI subjects out of nothing), `shard` (a dataset -> WebDataset tars) and `lint`
(what is wrong with them)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mri_ds.cli import console
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.data.manifest import Manifest

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    subjects: Annotated[int, typer.Option("--subjects", "--count", min=1, help="How many subjects.")] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same files.")] = 0,
    size: Annotated[
        int | None, typer.Option("--size", min=16, max=512, help="Voxels along each axis. Default: 96; of a label map, all.")
    ] = None,
    from_labels: Annotated[
        Path | None, typer.Option("--from-labels", metavar="DIR", help="Label maps (NIfTI) to make images of any contrast from.")
    ] = None,
    json: Json = False,
) -> None:
    """Make labelled synthetic brain MRI subjects: T1- and T2-like NIfTI images, tissue labels, lesion grade and age.

    With --from-labels: images of random contrast, resolution and artefacts of the anatomies in a folder of label maps (1 mm).
    FreeSurfer's ids are known; for others write labels.yaml beside them, `classes: {kidney: [1, 2], tumour: [3]}`.

    Example: `mri-ds synthesize --subjects 60 --out data/demo/subjects --seed 0 --size 64`

    Example: `mri-ds synthesize --from-labels label_maps --out data/any_contrast --count 20`
    """
    from mri_ds.data.synthesis import synthesize_dataset

    if from_labels is None:
        console.output_folder(out)
    with console.stdout_for_result(), console.progress("synthesize") as report:
        if from_labels is None:
            synthesize_dataset(out, num_subjects=subjects, seed=seed, size=size or 96, progress=report)
        else:
            from mri_ds.data.synthesis.label_cohort import synthesize_from_labels

            synthesize_from_labels(from_labels, out, num_subjects=subjects, seed=seed, size=size, progress=report)
    if json:
        console.print_json({"out": str(out), "subjects": subjects, "seed": seed, "size": size})
    else:
        print(f"{subjects} subjects in {out}. Next: mri-ds shard {out} --out shards")


def shard(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A dataset's folder, or a .csv table of its files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the tars and manifest.json into.")] = Path("shards"),
    folds: Annotated[int, typer.Option("--folds", min=2, help="Parts that the subjects are dealt into.")] = 5,
    fold: Annotated[int, typer.Option("--fold", min=0, help="Which part is held out as `test`.")] = 0,
    layout: Annotated[str, typer.Option("--format", help="msd, nnunet, bids, folder, csv or webdataset; auto looks.")] = "auto",
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series",
            metavar="NAME=PATTERN",
            help="Where each subject is one DICOM study: a series of it that becomes channel NAME, by number or by a pattern of "
            "its description. May be repeated.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a subject that cannot be used, instead of skipping it.")
    ] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes. Default: the cores that pay.")] = None,
    json: Json = False,
) -> None:
    """Check a dataset and write it as WebDataset tars, split into train and test by subject.

    A call that was stopped goes on where it was when it is made again. Subjects that cannot be used are listed and left out.

    Example: `mri-ds shard Task04_Hippocampus --out shards --folds 5 --fold 0`

    DICOM studies, a folder or zip each in hospital/images: `mri-ds shard hospital --series "T1w=*t1*post*" --series
    "FLAIR=*flair*|*tirm*"`. The series of a subject must lie on one grid; `mri-ds series STUDY` lists them.
    """
    if fold >= folds:
        raise InputError(f"--fold {fold} of --folds {folds}", fix=f"choose 0 to {folds - 1}")
    from mri_ds.data.layouts import describe, find_dataset
    from mri_ds.data.layouts.studies import parse_series
    from mri_ds.data.shards import write_shards

    dataset = find_dataset(source, layout, parse_series(series or []))
    print(f"{'recognised' if layout == 'auto' else 'read as'} {describe(dataset)}", file=sys.stderr, flush=True)
    console.output_folder(out)
    with console.stdout_for_result(), console.progress("shard", unit="volumes") as report:
        manifest = write_shards(dataset, out, num_folds=folds, fold=fold, strict=strict, num_workers=workers, progress=report)
    if json:
        console.print_json(manifest.model_dump(mode="json"))
    else:
        _print_summary(manifest, out)
    for line in dataset.problems:
        print(f"not used: {line}", file=sys.stderr if json else sys.stdout)


def _print_summary(manifest: "Manifest", out: Path) -> None:
    sizes = ", ".join(f"{split.num_samples} {name}" for name, split in manifest.splits.items())
    print(f"{sizes} subjects of {manifest.layout} layout in {out}; tasks: {', '.join(manifest.tasks)}")
    for line in manifest.skipped:
        print(f"skipped {line}")
    for line in manifest.notes:
        print(f"note on {line}")


def series(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A DICOM file, folder or zip.")],
    json: Json = False,
) -> None:
    """List the series of a DICOM study: what `mri-ds shard --series` can choose from.

    A description is shown only where it shares no word with the patient, the staff or the site.

    Example: `mri-ds series hospital/images/p001`
    """
    from mri_ds.data.dicom import list_series

    listed = list_series(study)
    if json:
        console.print_json({"series": [one._asdict() for one in listed]})
        return
    rows = []
    for one in listed:
        times = [one.acquisition.get(f"{name}_time_ms") for name in ("repetition", "echo", "inversion")]
        numbers = ["-" if time is None else format(time, "g") for time in times]
        described = one.description[:32] + (" (localiser)" if one.is_localiser else "")
        rows.append([one.key, described, str(one.num_frames), f"{one.columns} x {one.rows}", *numbers])
    console.print_table(["series", "description", "frames", "voxels", "TR ms", "TE ms", "TI ms"], rows, left=2)


def lint(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of shards.")],
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes. Default: one per core.")] = None,
    json: Json = False,
) -> None:
    """Check shards: checksums, index, geometry, labels, leakage between splits, balance, outliers. Exit code 2 on errors.

    Example: `mri-ds lint shards`
    """
    from mri_ds.data.lint import lint as run_lint

    with console.stdout_for_result(), console.progress("lint", unit="shards") as report:
        result = run_lint(folder, num_workers=workers, progress=report)
    if json:
        console.print_json(result.as_dict())
    else:
        console.print_findings(result.findings)
    num_bad = len(result.findings) if strict else result.num_errors
    if num_bad:
        raise InputError(f"{num_bad} findings", where=folder, fix="mend the source and shard it again")
    if not json:
        print(f"{', '.join(f'{count} {split}' for split, count in result.num_samples.items())} subjects: no error")
