"""From a table's columns to a shard: sex, decade of age and scanner are kept, and nothing else that is no task."""

import json

import numpy as np
import pytest

from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.layouts.strata import age_band, strata_of
from mri_ds.data.nifti import write_image
from mri_ds.data.shards import write_shards


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"sex": "M", "age": "39.99", "scanner": "Prisma-2", "site": "A"},
            {"sex": "M", "age_band": "30-39", "scanner": "Prisma-2"},
        ),
        ({"Gender": "Female", "AGE": "101"}, {"sex": "F", "age_band": "90+"}),
        ({"sex": "1", "age": "89+", "scanner": "n/a"}, {}),  # a code that says nothing, a cap that is no number
        ({"sex": "n/a", "age": "-4", "manufacturer": "x" * 65}, {}),
        ({"site": "A", "scanner": "B"}, {"scanner": "B"}),
        ({"scanner": "B"}, {}),  # then it is the site
        ({"birthday": "1960-01-01", "name": "Doe"}, {}),
        ({}, {}),
    ],
)
def test_what_passes(row, expected):
    assert strata_of(row) == expected


def test_decades():
    assert [age_band(years) for years in (0, 9.9, 10, 89.9, 90, 130, 131, "nan", "inf")] == [
        *("0-9", "0-9", "10-19", "80-89", "90+", "90+"), "", "", ""]  # fmt: skip


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_shards_keep_the_decade_and_not_the_age(tmp_path, layout):
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(4):
        write_image(tmp_path / "images" / f"s{i}.nii.gz", np.random.default_rng(i).random((8, 8, 8), dtype=np.float32), np.eye(4))
        rows.append([f"s{i}", f"6{i}.37", "FM"[i % 2], "few" if i < 2 else "many", "site-X", "Skyra"])
    columns = ["age", "sex", "lesion", "site", "scanner"]
    description = "channels: [image]\ntasks:\n  lesion: {kind: classification, classes: [few, many]}\n"
    if layout == "folder":
        table = [["participant_id", *columns], *rows]
        (tmp_path / "participants.tsv").write_text("\n".join("\t".join(row) for row in table) + "\n")
        (tmp_path / "dataset.yaml").write_text(description)
        source = tmp_path
    else:
        table = [["subject", "image", *columns], *([row[0], f"images/{row[0]}.nii.gz", *row[1:]] for row in rows)]
        (tmp_path / "study.csv").write_text("\n".join(",".join(row) for row in table) + "\n")
        (tmp_path / "study.yaml").write_text(description)
        source = tmp_path / "study.csv"
    write_shards(find_dataset(source), tmp_path / "shards", num_folds=2, num_workers=1)
    dataset = ShardDataset(tmp_path / "shards", "train")
    found = {dataset.meta(i).subject_id: dataset.meta(i).strata for i in range(len(dataset))}
    for subject, strata in found.items():
        assert strata == {"age_band": "60-69", "scanner": "Skyra", "sex": "FM"[int(subject[1]) % 2]}
    for path in (tmp_path / "shards").iterdir():
        assert b".37" not in path.read_bytes() or path.name.endswith(".tar"), f"an age is in {path.name}"
    kept = json.dumps([dataset.meta(i).model_dump() for i in range(len(dataset))])
    assert "6" in kept and not any(f"6{i}.37" in kept for i in range(4))
