"""Shards whose classes have names that want to be markup. Tests here share `report_runs`, imported by bare name."""

import json
import shutil
import sys
from pathlib import Path

import pytest

for shared in ("training", "inference", "cli", "report"):  # `browser`, `networks`, `commands`
    sys.path.insert(0, str(Path(__file__).parents[1] / shared))


@pytest.fixture(scope="session")
def hostile_shards(subjects_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten subjects of tests/conftest.py, the ball's and the largest size's names made into markup."""
    from report_runs import HOSTILE, IMAGE

    from mri_ds.data.layouts import find_dataset
    from mri_ds.data.shards import write_shards

    folder = tmp_path_factory.mktemp("hostile") / "subjects"
    shutil.copytree(subjects_folder, folder)
    table = folder / "participants.tsv"
    table.write_text(table.read_text().replace("large", IMAGE))
    names = {"ball": ["background", HOSTILE], "size": ["small", IMAGE]}
    (folder / "dataset.yaml").write_text(
        "channels: [T1w]\ntasks:\n"
        f"  ball: {{kind: segmentation, classes: {json.dumps(names['ball'])}}}\n"
        f"  size: {{kind: classification, classes: {json.dumps(names['size'])}}}\n"
        "  radius: {kind: regression, unit: mm}\n"
    )
    out = tmp_path_factory.mktemp("hostile-shards")
    write_shards(find_dataset(folder), out)
    return out
