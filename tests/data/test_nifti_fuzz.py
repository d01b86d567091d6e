"""Hundreds of damaged NIfTI files: each is read, or refused in one line; none crashes, hangs, or takes memory it has no use for.

The cases run in a process of their own, under a limit of address space (1 GiB beyond what Python and torch take) and of processor
time (10 s a case; a case that runs longer ends the process). Case number i is a function of i alone: `python test_nifti_fuzz.py
FOLDER 17 18` runs case 17 again and leaves its file in FOLDER.
"""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
REAL_FILES = (
    "Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz",
    "Task04_Hippocampus/imagesTr/hippocampus_367.nii.gz",
    "Task04_Hippocampus/labelsTr/hippocampus_003.nii.gz",
    "ms_lesions/patient07_lesions.nii.gz",
)
NUM_CASES, NUM_REAL_CASES = 840, 160
MAX_SECONDS = 10
MAX_BYTES = 2**30
Rng = np.random.Generator


# ---- damage: (bytes, rng) -> bytes -------------------------------------------------------------------------------------


def flip_bits(data: bytes, rng: Rng) -> bytes:
    content = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(content)


def flip_header_bits(data: bytes, rng: Rng) -> bytes:
    return flip_bits(data[:544], rng) + data[544:]


def overwrite(data: bytes, rng: Rng) -> bytes:
    start, length = rng.integers(len(data)), rng.integers(1, 65)
    filling = [bytes(length), b"\xff" * length, rng.bytes(length)][rng.integers(3)]
    return data[:start] + filling + data[start + length :]


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(len(data))]


def insert(data: bytes, rng: Rng) -> bytes:
    at, start = rng.integers(len(data)), rng.integers(len(data))
    return data[:at] + data[start : start + rng.integers(1, 1000)] + data[at:]


def cut_out(data: bytes, rng: Rng) -> bytes:
    start = rng.integers(len(data))
    return data[:start] + data[start + rng.integers(1, 1000) :]


def set_fields(data: bytes, rng: Rng) -> bytes:
    """One to three header fields get the values that are most likely to be trusted wrongly."""
    kind = nib.nifti2.header_dtype if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.nifti1.header_dtype
    if len(data) < kind.itemsize:
        return data
    order = ">" if data[0] == 0 else "<"
    record = np.frombuffer(data[: kind.itemsize], kind.newbyteorder(order), count=1)[0].copy()
    numeric = [name for name in kind.names if kind[name].base.kind in "iuf"]
    for name in rng.choice([*numeric, "dim", "dim", "datatype", "vox_offset", "pixdim", "scl_slope"], size=rng.integers(1, 4)):
        base = kind[name].base
        limits = np.iinfo(base) if base.kind in "iu" else np.finfo(base)
        choices = [0, 1, -1, 2, 7, 8, 255, 1000, 16000, limits.min, limits.max]
        choices += [np.nan, np.inf, -np.inf, 1e-30, 0.5] if base.kind == "f" else []
        value = choices[rng.integers(len(choices))]
        where = rng.integers(kind[name].shape[0]) if kind[name].shape else None
        if where is None:
            record[name] = np.array(value).astype(base)
        else:
            record[name][where] = np.array(value).astype(base)
    return record.tobytes() + data[kind.itemsize :]


DAMAGES: list[Callable[[bytes, Rng], bytes]] = [
    set_fields,
    set_fields,
    set_fields,
    flip_header_bits,
    flip_bits,
    overwrite,
    truncate,
    insert,
    cut_out,
]


def damaged(data: bytes, rng: Rng) -> bytes:
    """A plain file is damaged; of a gzip file either the stream, or what is in it before it is zipped again."""
    for _ in range(rng.integers(1, 3)):
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        if data[:2] == b"\x1f\x8b" and (rng.random() < 0.7 or damage is set_fields):
            try:
                data = gzip.compress(damage(gzip.decompress(data), rng), compresslevel=1, mtime=0)
                continue
            except (OSError, EOFError, ValueError, zlib.error):  # damaged already
                pass
        data = damage(data, rng) if data else data
    return data


# ---- files to begin with -----------------------------------------------------------------------------------------------


def write_good_files(folder: Path) -> None:
    """Small files of both versions, both byte orders, plain, gzipped and in pairs; an image, labels, channels."""
    rng, affine = np.random.default_rng(0), np.diag([1, 1.5, 2, 1])
    volumes = {
        "image": rng.normal(100, 20, (9, 8, 7)).astype(np.float32),
        "label": rng.integers(0, 3, (9, 8, 7)).astype(np.uint8),
        "channels": rng.integers(-500, 500, (6, 5, 4, 3)).astype(np.int16),
        "wide": rng.normal(0, 1, (5, 5, 5)),
    }
    kinds = {"nii": (nib.Nifti1Image, nib.Nifti2Image), "nii.gz": (nib.Nifti1Image, nib.Nifti2Image), "img": (nib.Nifti1Pair,)}
    for suffix, classes in kinds.items():
        for version, kind in enumerate(classes, start=1):
            for order in "<>":
                for name, voxels in volumes.items():
                    header = kind.header_class(endianness=order)
                    header.set_data_dtype(voxels.dtype)
                    nib.save(kind(voxels, affine, header), folder / f"{name}_{version}{'be' if order == '>' else 'le'}.{suffix}")


def real_files() -> list[Path]:
    return [REAL / name for name in REAL_FILES]


# ---- in the process that reads -----------------------------------------------------------------------------------------


def write_case(number: int, good: list[Path], folder: Path) -> Path:
    """Damages one file, chosen and damaged by the case's number; of a pair, either half."""
    rng = np.random.default_rng(number)
    source = good[number % len(good)]
    parts = [source] if source.suffix != ".img" else [source, source.with_suffix(".hdr")]
    victim = rng.integers(len(parts))
    for i, part in enumerate(parts):
        target = folder / f"case{part.name[part.name.index('.') :]}"
        target.write_bytes(damaged(part.read_bytes(), rng) if i == victim else part.read_bytes())
    return folder / f"case{source.name[source.name.index('.') :]}"


def outcome(read: Callable[[Path], object], path: Path) -> str:
    from mri_ds.errors import InputError

    try:
        volume = read(path)
    except InputError as err:
        text = str(err)
        good = text.startswith(f"{path}: ") and " Fix: " in text and "\n" not in text and len(text) < 1000
        return "refused" if good else f"badly told: {text}"
    except Exception as err:
        return f"crash: {err!r}"
    finite = np.isfinite(volume.voxels).all() and np.isfinite(volume.affine).all()
    return "read" if finite and np.linalg.det(volume.affine) != 0 else "not finite"


def main(folder: Path, first: int, last: int, good: list[Path]) -> None:
    """Prints a JSON line before each case and one after it."""
    from mri_ds.data.nifti import read_image, read_label
    from mri_ds.sample import Volume  # noqa: F401  (torch: before the limit is set)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES, size + MAX_BYTES))
    for number in range(first, last):
        print(json.dumps({"begins": number}), flush=True)
        path = write_case(number, good, folder)
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # SIGPROF ends the process
        start = time.process_time()
        outcomes = [outcome(read, path) for read in (read_image, read_label)]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"number": number, "outcomes": outcomes, "seconds": time.process_time() - start}), flush=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"grown_bytes": grown * 1024}), flush=True)


# ---- the tests ---------------------------------------------------------------------------------------------------------


def run_cases(tmp_path: Path, good: list[Path], num_cases: int) -> Counter[str]:
    """Outcomes of all cases. Fails on the first that is neither read nor refused, or takes too long or too much."""
    folder = tmp_path / "cases"
    folder.mkdir()
    command = [sys.executable, __file__, str(folder), "0", str(num_cases), *map(str, good)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended with {done.returncode} in {lines[-1] if lines else 'no case'}: {done.stderr[-2000:]}"
    assert done.stderr == ""  # numpy's and nibabel's warnings would be lines beside the one
    cases = [line for line in lines if "outcomes" in line]
    assert [case["number"] for case in cases] == list(range(num_cases))
    bad = [case for case in cases if not set(case["outcomes"]) <= {"read", "refused"}]
    assert not bad, bad[:5]
    assert max(case["seconds"] for case in cases) < MAX_SECONDS
    assert lines[-1]["grown_bytes"] < MAX_BYTES
    assert {path.suffix for path in folder.iterdir()} <= {".nii", ".gz", ".img", ".hdr"}  # reading leaves nothing behind
    return Counter(what for case in cases for what in case["outcomes"])


def test_damaged_small_files(tmp_path: Path) -> None:
    write_good_files(tmp_path)
    good = sorted(path for path in tmp_path.iterdir() if path.suffix != ".hdr")
    assert len(good) == 40
    outcomes = run_cases(tmp_path, good, NUM_CASES)
    assert outcomes["read"] > NUM_CASES / 10 and outcomes["refused"] > NUM_CASES / 2, outcomes


@pytest.mark.skipif(not all(path.is_file() for path in real_files()), reason=f"no real MRI in {REAL}: set MRI_DS_REAL_DATA")
def test_damaged_real_files(tmp_path: Path) -> None:
    outcomes = run_cases(tmp_path, real_files(), NUM_REAL_CASES)
    assert outcomes["read"] > NUM_REAL_CASES / 10 and outcomes["refused"] > NUM_REAL_CASES / 2, outcomes


def bomb(shape: tuple[int, int, int], code: int, num_zeros: int) -> bytes:
    """A gzip file of a header and `num_zeros` zero bytes, in members of 16 MiB: a few hundred kB for hundreds of MB."""
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).header
    record = header.structarr.copy()
    record["dim"][1:4], record["datatype"], record["vox_offset"] = shape, code, 352
    member = 2**24
    return gzip.compress(record.tobytes() + bytes(4), mtime=0) + gzip.compress(bytes(member), mtime=0) * (num_zeros // member)


BOMBS = {  # shape, number type, zeros; how it must end
    "promises 4 GB and holds 128 MB": ((800, 800, 800), 64, 2**27, "refused"),
    "holds 8 GB of zeros behind its voxels": ((8, 8, 8), 2, 2**33, "read"),
    "promises 27 TB": ((30000, 30000, 30000), 2, 2**24, "refused"),
}


def test_bombs(tmp_path: Path) -> None:
    """Undamaged: case 0 of no damage at all is the file itself. All in one process, within the memory that one may take."""
    for number, (shape, code, num_zeros, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.nii.gz").write_bytes(bomb(shape, code, num_zeros))
    program = (
        "import resource, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import test_nifti_fuzz as fuzz; from mri_ds.data.nifti import read_label; from mri_ds.sample import Volume;"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (size + fuzz.MAX_BYTES,) * 2)\n"
        "for path in map(Path, sys.argv[2:]):\n"
        "    start = time.process_time()\n"
        "    print(fuzz.outcome(read_label, path), time.process_time() - start)"
    )
    paths = [str(tmp_path / f"{number}.nii.gz") for number in range(len(BOMBS))]
    done = subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent), *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(BOMBS, done.stdout.splitlines(), strict=True):
        what, seconds = line.split()
        assert what == BOMBS[name][3] and float(seconds) < MAX_SECONDS, name


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [Path(name) for name in sys.argv[4:]] or real_files())
