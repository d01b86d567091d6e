"""A user's Albumentations pipeline: exact where it can be, repeatable, and refused where it would spoil labels."""

import numpy as np
import pytest
import torch

from mri_ds.augment.albumentations_pipeline import apply_pipeline, load_pipeline
from mri_ds.errors import InputError

A = pytest.importorskip("albumentations", reason="Albumentations is not installed")
SHAPE = (6, 9, 9)


def sample(channels: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, SHAPE, generator=generator) * 1007
    return torch.randn(channels, *SHAPE, generator=generator), {
        "tissue": labels.to(torch.int16),
        "lesion": (labels > 7).to(torch.int16),
    }


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_flip_of_planes_is_exact_for_image_and_labels(channels):
    image, labels = sample(channels)
    moved, maps = apply_pipeline(A.Compose([A.HorizontalFlip(p=1)]), image, labels, seed=0)
    assert torch.equal(moved, image.flip(3)) and torch.equal(maps["tissue"], labels["tissue"].flip(2))
    assert torch.equal(maps["lesion"], labels["lesion"].flip(2)) and maps["tissue"].dtype == torch.int16
    assert torch.equal(image, sample(channels)[0]), "the input was changed"


def test_the_seed_decides_and_labels_keep_their_values():
    image, labels = sample()
    pipeline = A.Compose([A.Affine(rotate=(-30, 30), scale=(0.8, 1.2), p=0.9), A.ElasticTransform(p=0.5)])
    results = [apply_pipeline(pipeline, image, labels, seed=seed) for seed in (1, 2, 1)]
    assert torch.equal(results[0][0], results[2][0]) and torch.equal(results[0][1]["tissue"], results[2][1]["tissue"])
    assert not torch.equal(results[0][0], results[1][0])
    for _, maps in results:
        assert set(maps["tissue"].unique().tolist()) <= {0, 1007, 2014}
        assert torch.equal(maps["lesion"], (maps["tissue"] > 7).to(torch.int16)), "two label maps moved differently"


def test_its_3d_transforms_and_a_single_label_map():
    """One of the 48 symmetries of the cube: all voxels are there, and image and label moved alike."""
    label = torch.arange(343).view(7, 7, 7)
    image = label[None].float()
    for seed in range(5):
        moved, maps = apply_pipeline(A.Compose([A.CubicSymmetry(p=1)]), image, {"id": label}, seed=seed)
        assert torch.equal(moved[0].long(), maps["id"]) and torch.equal(maps["id"].flatten().sort().values, label.flatten())


def test_without_labels():
    image, _ = sample()
    moved, maps = apply_pipeline(A.Compose([A.VerticalFlip(p=1)]), image, {}, seed=0)
    assert torch.equal(moved, image.flip(2)) and maps == {}


def test_labels_that_would_be_mixed_are_refused():
    image, labels = sample()
    pipeline = A.Compose([A.Affine(rotate=(20, 20), p=1, mask_interpolation=1)])
    with pytest.raises(InputError, match=r"gives labels the values .* mask_interpolation"):
        apply_pipeline(pipeline, image, labels, seed=0)


def test_a_change_of_size_and_a_failing_transform_are_refused():
    image, labels = sample()
    with pytest.raises(InputError, match=r"turns \(6, 9, 9\) voxels into \(6, 4, 4\)"):
        apply_pipeline(A.Compose([A.CenterCrop(4, 4)]), image, labels, seed=0)
    with pytest.raises(InputError, match="fails on a volume"):
        apply_pipeline(A.Compose([A.RandomFog(p=1)]), image, labels, seed=0)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_saved_pipeline_comes_back(kind, tmp_path):
    path = tmp_path / f"pipeline.{kind}"
    A.save(A.Compose([A.HorizontalFlip(p=1)]), path, data_format=kind)
    image, labels = sample()
    assert torch.equal(apply_pipeline(load_pipeline(path), image, labels, seed=0)[0], image.flip(3))


@pytest.mark.parametrize("text", ["{}", "not json", '{"transform": {"__class_fullname__": "os.system"}}'])
def test_a_file_that_is_no_pipeline_is_one_clear_line(text, tmp_path):
    path = tmp_path / "pipeline.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"pipeline\.json: is no Albumentations pipeline"):
        load_pipeline(path)
    with pytest.raises(InputError, match="No such file"):
        load_pipeline(tmp_path / "absent.json")


def test_values_that_are_not_finite_are_refused():
    image, labels = sample()

    class Broken:
        def set_random_seed(self, seed: int) -> None: ...

        def __call__(self, volume, mask3d):
            return {"volume": volume * np.nan, "mask3d": mask3d}

    with pytest.raises(InputError, match="infinite or NaN"):
        apply_pipeline(Broken(), image, labels, seed=0)
