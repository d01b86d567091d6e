"""Sites: from a column of the table to balanced epochs and to lint, whatever the layout."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mri_ds.config import DataConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.lint import lint
from mri_ds.data.loader import make_loader
from mri_ds.data.nifti import write_image
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError

SITES = ["north"] * 9 + ["south"] * 3


def write_subjects(folder: Path, name: str) -> None:
    for i in range(len(SITES)):
        voxels = np.random.default_rng(i).normal(100, 20, (8, 8, 8)).astype(np.float32)
        write_image(folder / name.format(i), voxels, np.eye(4))


def make_folder(src: Path, header: str) -> Path:
    write_subjects(src / "images", "s{:02d}_T1w.nii.gz")
    rows = [f"s{i:02d}\t{20 + i}\t{site}" for i, site in enumerate(SITES)]
    (src / "participants.tsv").write_text("\n".join([f"participant_id\tage\t{header}", *rows]) + "\n")
    return src


def make_csv(src: Path, header: str) -> Path:
    write_subjects(src / "files", "s{:02d}.nii.gz")
    rows = [f"s{i:02d};files/s{i:02d}.nii.gz;{20 + i};{site}" for i, site in enumerate(SITES)]
    (src / "table.csv").write_text("\n".join([f"subject;image;age;{header}", *rows]) + "\n")
    return src / "table.csv"


def make_bids(src: Path, header: str) -> Path:
    write_subjects(src, "sub-{0:02d}/anat/sub-{0:02d}_T1w.nii.gz")
    rows = [f"sub-{i:02d}\t{20 + i}\t{site}" for i, site in enumerate(SITES)]
    (src / "participants.tsv").write_text("\n".join([f"participant_id\tage\t{header}", *rows]) + "\n")
    return src


@pytest.mark.parametrize("header", ["site", "SITE_ID", "Scanner"])
@pytest.mark.parametrize("make", [make_folder, make_csv, make_bids])
def test_every_table_names_sites_that_are_no_targets(tmp_path, make, header):
    found = find_dataset(make(tmp_path, header))
    assert [subject.site for subject in found.subjects] == SITES
    assert list(found.tasks) == ["age"] and found.problems == []


def test_a_site_that_the_description_names_is_a_target_too(tmp_path):
    make_folder(tmp_path, "site")
    (tmp_path / "dataset.yaml").write_text("tasks: {site: {kind: classification, classes: [north, south]}}\n")
    found = find_dataset(tmp_path)
    assert (
        list(found.tasks) == ["site"] and [s.site for s in found.subjects] == [s.values["site"] for s in found.subjects] == SITES
    )


def test_a_sessions_own_site_wins(tmp_path):
    for visit in ("1", "2"):
        write_image(
            tmp_path / f"sub-1/ses-{visit}/anat/sub-1_ses-{visit}_T1w.nii.gz", np.arange(512.0).reshape(8, 8, 8), np.eye(4)
        )
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsite\nsub-1\t50\tnorth\n")
    (tmp_path / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tsite\nses-2\tsouth\n")
    assert [subject.site for subject in find_dataset(tmp_path).subjects] == ["north", "south"]


def test_no_site_and_no_code(tmp_path):
    make_folder(tmp_path, "hospital")
    assert {subject.site for subject in find_dataset(tmp_path).subjects} == {""}
    table = tmp_path / "participants.tsv"
    table.write_text(table.read_text().replace("hospital", "site").replace("north", "n/a").replace("south", "s" * 65))
    with pytest.raises(InputError, match=r"participants.tsv: s09: site has 65 letters"):
        find_dataset(tmp_path)


def test_from_the_table_to_balanced_epochs_and_to_lint(tmp_path):
    """Nine subjects of one site, three of another: half of every epoch is of each. Lint counts them, and warns of a rare one."""
    source = make_folder(tmp_path / "source", "site")
    write_shards(find_dataset(source), tmp_path / "shards", num_folds=4)
    dataset = ShardDataset(tmp_path / "shards", "train")
    site_of = {dataset.subject_ids[i]: dataset.site(i) for i in range(len(dataset))}
    assert site_of == {f"s{i:02d}": site for i, site in enumerate(SITES) if f"s{i:02d}" in site_of} and len(site_of) == 9
    config = DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8), augment=False, balance="site", num_workers=0)
    sizes = {"global_batch": 3, "micro_batch": 3, "rank": 0, "world_size": 1}
    batches = make_loader(dataset, config, dataset.tasks, seed=0, **sizes)
    shown = [site_of[subject] for batch in itertools.islice(batches, 6) for subject in batch["subject_id"]]
    assert all(sorted(Counter(epoch).values()) == [4, 5] for epoch in (shown[:9], shown[9:])), "nine places between two sites"
    assert balance_of(tmp_path / "shards") == [("test", "site 'south' has 0 of 3 subjects")]
    assert lint(tmp_path / "shards", num_workers=1).sites == {"train": {"north": 6, "south": 3}, "test": {"north": 3}}
    table = source / "participants.tsv"
    table.write_text(table.read_text().replace("s09\t29\tsouth", "s09\t29\teast"))
    write_shards(find_dataset(source), tmp_path / "shards", num_folds=4)  # a site is part of a shard: it is written again
    assert ("test", "site 'east' has 0 of 3 subjects") in balance_of(tmp_path / "shards")


def balance_of(folder: Path) -> list[tuple[str, str]]:
    return [(found.where, found.what) for found in lint(folder, num_workers=1).findings if found.check == "balance"]
