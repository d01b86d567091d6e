"""What a notebook imports: the examples of `help(mri_ds)`, run as they stand."""

import doctest
import subprocess
import sys

import pytest
from networks import write_image, write_run

import mri_ds


def test_the_packages_examples_run_as_they_stand(tmp_path, monkeypatch):
    write_run(tmp_path / "runs/first")
    write_image(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    told = doctest.testmod(mri_ds, optionflags=doctest.ELLIPSIS)
    assert told.attempted > 8 and told.failed == 0
    assert (tmp_path / "predictions/scan_tissue.nii.gz").is_file()


def test_names_are_imported_when_they_are_used():
    code = "import sys, mri_ds; early = 'torch' in sys.modules; mri_ds.create_basic_net; print(early, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert set(mri_ds.__all__) <= set(dir(mri_ds))
    with pytest.raises(AttributeError, match="no attribute 'create_net'"):
        mri_ds.create_net  # noqa: B018
