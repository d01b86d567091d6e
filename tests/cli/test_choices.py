"""Options that take one of a few words: the line names the option, all words and the nearest one; shells complete them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import refusal

from mri_ds.cli import doctor
from mri_ds.training.doctor.environment import LAUNCHERS

SCALES = "tiny, small, base, large, xl"
TINY = str(Path(__file__).resolve().parents[2] / "ds_configs/tiny.json")

TYPOS = [
    ("info --scale smol", f"--scale: unknown scale 'smol'; there are {SCALES}. Fix: did you mean 'small'?"),
    ("info --scale XL", f"--scale: unknown scale 'XL'; there are {SCALES}. Fix: did you mean 'xl'?"),
    ("plan --scale bas", f"--scale: unknown scale 'bas'; there are {SCALES}. Fix: did you mean 'base'?"),
    ("plan --device h20", "--device: unknown device 'h20'; there are h200, h100, h100-pcie, a100, l40s, v100, cpu. Fix: did you"),
    ("train --scale larg", f"--scale: unknown scale 'larg'; there are {SCALES}. Fix: did you mean 'large'?"),
    ("init . --yes --scale tin", f"--scale: unknown scale 'tin'; there are {SCALES}. Fix: did you mean 'tiny'?"),
    (f"doctor --ds_config {TINY} --scale x", f"--scale: unknown scale 'x'; there are {SCALES}. Fix: did you mean 'xl'?"),
    (f"doctor --ds_config {TINY} --launcher slrm", "torchrun. Fix: did you mean 'slurm'?"),
    ("convert run --to fp23", "--to: unknown format 'fp23'; there are safetensors, fp32, universal. Fix: did you mean 'fp32'?"),
    ("parity --dtype bf61", "--dtype: unknown dtype 'bf61'; there are fp32, bf16. Fix: did you mean 'bf16'?"),
    (
        "shard . --format nnunt",
        "--format: no format 'nnunt'; there are auto, csv, nnunet, msd, folder, bids, webdataset. Fix: did",
    ),
    ("bench moe --scales small,bsae", f"--scales: unknown scale 'bsae'; there are {SCALES}. Fix: did you mean 'base'?"),
    ("bench moe --dtype float16", "--dtype: unknown dtype 'float16'; there are float32, bfloat16. Fix: did you mean 'bfloat16'?"),
    ("bench volume --scale smal", f"--scale: unknown scale 'smal'; there are {SCALES}. Fix: did you mean 'small'?"),
    ("bench scaling --part week", "--part: unknown part 'week'; there are targets, weak, both. Fix: did you mean 'weak'?"),
    ("bench attention --device cdua", "--device: unknown device 'cdua'; there are cpu, cuda. Fix: did you mean 'cuda'?"),
    ("bench network --contenders small,UNTER", "--contenders: unknown contender 'UNTER'; there are tiny, small"),
    ("trian", "mri-ds: no such command 'trian'. Fix: did you mean 'train'?"),
    ("bench netwrok", "mri-ds bench: no such command 'netwrok'. Fix: did you mean 'network'? There are accuracy, attention"),
    ("train --stepps 3", "mri-ds train: no such option '--stepps'. Fix: did you mean"),
    ("--verson", "mri-ds: no such option '--verson'. Fix: did you mean '--version'?"),
    ("synthesize", "mri-ds synthesize: missing option '--out'. Fix: see `mri-ds synthesize --help`."),
    ("synthesize --out x --subjects many", "mri-ds synthesize: invalid value for '--subjects'"),
]


@pytest.mark.parametrize(("line", "told"), TYPOS, ids=[line.replace(TINY, "JSON") for line, _ in TYPOS])
def test_a_misspelt_word_is_one_line(line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refusal(*line.split())
    assert list(tmp_path.iterdir()) == []


def test_the_doctors_launchers_are_those_it_knows() -> None:
    assert set(doctor.LAUNCHERS) == set(LAUNCHERS)


def test_the_shell_completes_words() -> None:
    asked = {"_MRI_DS_COMPLETE": "complete_bash", "COMP_WORDS": "mri-ds info --scale ", "COMP_CWORD": "3"}
    mri_ds = Path(sys.executable).with_name("mri-ds")
    done = subprocess.run([mri_ds], env=os.environ | asked, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == SCALES.split(", ")
