"""Several looks at one window: what flips and folds are averaged to, and when flipping left-right is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TASKS, write_run

from mri_ds.config import TaskConfig
from mri_ds.data.preprocess import prepare_placed, scores_to_shape, settings
from mri_ds.errors import InputError
from mri_ds.inference.ensemble import check_flips, sided_names
from mri_ds.inference.run import fold_folders, load_run
from mri_ds.inference.subject import predict_sample
from mri_ds.nn.sliding_window import sliding_window
from mri_ds.sample import Sample

NATIVE_MM = (1.2, 1.1, 1.5)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs; the last sees another grid than the first two."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(3):
        write_run(folder / f"fold_{number}", seed=number, spacing_mm=(1.0, 1.1, 1.5) if number < 2 else (1.5, 1.1, 1.2))
    return folder


@pytest.fixture(scope="module")
def sample() -> Sample:
    rng = np.random.default_rng(0)
    image = np.kron(rng.normal(size=(5, 6, 5)), np.ones((4, 4, 4)))[:18, :21, :17][None].astype(np.float32)
    affine = np.diag([*NATIVE_MM, 1.0])
    return Sample(subject_id="s", image=image, affine=affine, spacing_mm=np.array(NATIVE_MM), targets={})


def outputs(folder: Path, sample: Sample) -> dict[str, torch.Tensor]:
    """One run's scores by the whole buffer, on the native grid; probabilities; value."""
    run = load_run(folder, "cpu")
    prepared, _ = prepare_placed(sample, **settings(run.config.data))
    spacing_mm = torch.tensor(prepared["spacing_mm"], dtype=torch.float32)[None]
    image = torch.from_numpy(prepared["image"])[None]
    with torch.inference_mode():
        seen = sliding_window(lambda x: run.net(x, spacing_mm), image, patch=(16, 16, 16), pad_value=float(image.min()))
    return {"tissue": scores_to_shape(seen["tissue"][0], sample["image"].shape[1:]), "age": seen["age"], "grade": seen["grade"]}


def test_folds_are_averaged_whatever_their_grids(folds, sample):
    run = load_run(folds, "cpu")
    assert run.num_members == 2 and len(run.others) == 1 and run.digest != load_run(folds / "fold_0", "cpu").digest
    found = predict_sample(run, sample)
    each = [outputs(folds / f"fold_{number}", sample) for number in range(3)]
    mean = torch.stack([one["tissue"] for one in each]).mean(dim=0)
    top = mean.sort(dim=0, descending=True).values
    is_clear = (top[0] - top[1]).numpy() > 1e-4
    assert np.array_equal(found["tissue"].labels[is_clear], mean.argmax(dim=0).numpy()[is_clear]) and is_clear.mean() > 0.99
    assert len(np.unique(found["tissue"].labels)) > 1
    assert found["age"].value == pytest.approx(float(torch.stack([one["age"] for one in each]).mean()), rel=1e-5)
    assert found["grade"].probabilities.sum() == pytest.approx(1)
    own = [predict_sample(load_run(folds / f"fold_{number}", "cpu"), sample)["tissue"].labels for number in range(3)]
    assert all((one != found["tissue"].labels).any() for one in own)


def test_several_checkpoints_are_the_folder_of_folds(folds, sample):
    paths = [folds / f"fold_{number}" for number in range(3)]
    one, other = load_run(paths, "cpu"), load_run(folds, "cpu")
    assert one.digest == other.digest
    assert np.array_equal(predict_sample(one, sample)["tissue"].labels, predict_sample(other, sample)["tissue"].labels)


def test_a_flipped_image_gives_the_flipped_prediction(folds, sample):
    """What averaging over all flips means, and what no single look of an untrained network has."""
    flipped = Sample(**{**sample, "image": np.ascontiguousarray(sample["image"][:, ::-1, :, ::-1])})
    plain, varied = load_run(folds / "fold_0", "cpu"), load_run(folds / "fold_0", "cpu", flip_axes=[2, 0])
    shares = []
    for run in (plain, varied):
        one, other = predict_sample(run, sample), predict_sample(run, flipped)
        shares.append((one["tissue"].labels == other["tissue"].labels[::-1, :, ::-1]).mean())
        if run is varied:
            assert one["age"].value == pytest.approx(other["age"].value, rel=1e-5)
            assert np.allclose(one["grade"].probabilities, other["grade"].probabilities, atol=1e-6)
        else:
            assert abs(one["age"].value - other["age"].value) > 1e-4
    assert shares[1] > 0.999 > shares[0]


def test_sides_are_not_exchanged():
    sided = {"hippocampus": TaskConfig(kind="segmentation", classes=["background", "Left-CA1", "CA1_R", "ctx-lh-cuneus", "lhV1"])}
    assert sided_names(sided) == ["Left-CA1", "CA1_R", "ctx-lh-cuneus", "lhV1"]
    assert sided_names(TASKS) == [] and check_flips([2, 0, 0], TASKS) == [0, 2] and check_flips([1, 2], sided) == [1, 2]
    with pytest.raises(InputError, match="exchange sides"):
        check_flips([0], sided)
    with pytest.raises(InputError, match="no axis 3"):
        check_flips([3], TASKS)


def test_runs_that_do_not_go_together_are_refused(folds, tmp_path):
    write_run(tmp_path / "other", tasks={**TASKS, "age": TaskConfig(kind="regression", unit="months")})
    with pytest.raises(InputError, match=r"other: learned other tasks or classes than .*fold_0"):
        load_run([folds / "fold_0", tmp_path / "other"], "cpu")
    shutil.copytree(folds / "fold_0", tmp_path / "t2")
    text = (tmp_path / "t2/manifest.json").read_text()
    (tmp_path / "t2/manifest.json").write_text(text.replace("T1w", "T2w"))
    with pytest.raises(InputError, match=r"t2: takes the channels T2w, and .*fold_0 T1w"):
        load_run([folds / "fold_0", tmp_path / "t2"], "cpu")
    with pytest.raises(InputError, match="no checkpoint"):
        load_run([])


def test_folds_are_taken_by_their_numbers(tmp_path):
    for name in ("fold_10", "fold_2", "fold-0", "folded", "fold_x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in fold_folders(tmp_path)] == ["fold-0", "fold_2", "fold_10"]
    with pytest.raises(InputError, match=r"fold-0: has no config\.yaml"):
        load_run(tmp_path)


def test_weights_of_a_step(folds, tmp_path):
    """Without final weights the newest converted ones; a file where one is named."""
    folder = write_run(tmp_path / "run", seed=5, name="model-step000100.safetensors")
    write_run(folder, seed=6, name="model-step000090.safetensors")
    newest = load_run(folder, "cpu").net.state_dict()
    named = load_run(folder / "model-step000090.safetensors", "cpu").net.state_dict()
    torch.manual_seed(0)
    assert all(
        torch.equal(newest[k], v) for k, v in load_run(folder / "model-step000100.safetensors", "cpu").net.state_dict().items()
    )
    assert any(not torch.equal(newest[k], v) for k, v in named.items())
