"""mri_ds: one network, many MRI tasks, from a laptop to a cluster, on DeepSpeed.

What a notebook needs is here; it is imported when it is first used, so that `import mri_ds` is quick.

>>> import torch
>>> from mri_ds import create_sota_net
>>> from mri_ds.config import TaskConfig
>>> tasks = {
...     "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"]),
...     "age": TaskConfig(kind="regression", unit="years"),
... }
>>> net = create_sota_net(tasks, scale="tiny", in_channels=2).eval()
>>> with torch.no_grad():
...     outputs = net(torch.rand(1, 2, 24, 20, 16), spacing_mm=torch.tensor([[1.0, 1.0, 1.2]]))  # (B, C, D, H, W)
>>> {task: tuple(values.shape) for task, values in outputs.items()}
{'tissue': (1, 3, 24, 20, 16), 'age': (1,)}

A trained run, files in and files out:

>>> from mri_ds import load_run, predict
>>> run = load_run("runs/first")
>>> results = predict(run, ["scan.nii.gz"], "predictions")
>>> list(results.subjects[0]["tasks"])
['tissue', 'grade', 'age']
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["BaseMRINet", "__version__", "create_basic_net", "create_sota_net", "load_run", "predict"]

_HOMES = {
    "BaseMRINet": "mri_ds.mri_network",
    "create_basic_net": "mri_ds.mri_network",
    "create_sota_net": "mri_ds.mri_network",
    "load_run": "mri_ds.inference.run",
    "predict": "mri_ds.inference.predict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mri_ds' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
