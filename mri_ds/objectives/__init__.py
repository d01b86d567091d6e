"""Ways of learning. Each is an nn.Module: forward(batch) -> {"loss": the one attached tensor, everything else detached}."""

from torch import nn

from mri_ds.objectives.supervised import SupervisedObjective

OBJECTIVES: dict[str, type[nn.Module]] = {"supervised": SupervisedObjective}
