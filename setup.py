"""Package metadata. `pip install -e .` after `pip install torch==2.13.0`; `bash tools/setup.sh` does both."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "mri_ds/__init__.py").read_text()).group(1)  # type: ignore[union-attr]
DICOM = [
    "pydicom>=3.0,<4",
    "pylibjpeg>=2.1",
    "pylibjpeg-openjpeg>=2.5",  # JPEG 2000
    "pyjpegls>=1.5",  # JPEG-LS
    "python-gdcm>=3.2",  # JPEG, lossless too (pylibjpeg-libjpeg would do, but is GPL)
    "highdicom>=0.26",  # label maps as DICOM SEG
    "dcm2niix>=1.0.20260416",  # for what we do not read; older wheels cannot decode JPEG-LS, JPEG 2000, RLE
]

setup(
    name="mri_ds",
    version=VERSION,
    description="Multi-task MRI transformer trained with DeepSpeed: expert parallelism, ZeRO-3, WebDataset shards",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mri_ds", "mri_ds.*"]),
    package_data={"mri_ds.report": ["*.css", "*.js"]},
    install_requires=[
        "torch>=2.11,<2.14",  # the cap keeps a bare install from pulling a newer CUDA build
        "deepspeed>=0.19,<0.20",
        "einops>=0.8",
        "nibabel>=5.3",
        "numpy>=2",
        "scipy>=1.14",
        "webdataset>=1.0",
        "zstandard>=0.23",
        "safetensors>=0.5",
        "tensorboard>=2.18",
        "pyyaml>=6",
        "pydantic>=2.10",
        "mpi4py>=4.1",
        "matplotlib>=3.9",
        "scikit-learn>=1.5",
        "typer>=0.15",
        "rich>=13",
        "ninja",
    ],
    extras_require={
        "albumentations": ["albumentations>=2.0.8"],  # or albumentationsx, its AGPL successor: the same import name
        "dicom": DICOM,
        "preprocess": ["SimpleITK>=2.5"],  # data.bias_correction
        "report": ["ipyniivue>=2.4,<2.5"],  # NiiVue, for the report's viewer; its Jupyter parts are not used
        "track": ["wandb>=0.20"],  # training.wandb
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<3",
            "types-PyYAML",
            "mpich>=4.3",
            "monai>=1.5",
            "medpy>=0.5",
            "surface-distance>=0.1",
            "statsmodels>=0.14",  # oracle of Holm and McNemar in tests; nothing imports it at run time
            "torchio>=1.2",
            "albumentations>=2.0.8",
            "SimpleITK>=2.5",
            *DICOM,
        ],
    },
    entry_points={"console_scripts": ["mri-ds = mri_ds.cli.main:main"]},
)
