"""Supervised learning of all tasks at once: a net's predictions against the labels that each subject has.

In: Batch (see sample.py).  Out: {"loss": attached scalar, task: detached loss, "weight/" + task: detached learned weight,
SUBJECT_LOSS: detached (B,)}.
Net and loss are handed to DeepSpeed together, so that learned task weights are sharded, trained and saved like any weight.
"""

from torch import Tensor, nn

from mri_ds.losses import MultiTaskLoss
from mri_ds.sample import Batch


class SupervisedObjective(nn.Module):
    """net(image, spacing_mm) -> {task: prediction}, judged by a MultiTaskLoss of the same tasks.

    Exactly one tensor of the result is attached to the graph: DeepSpeed may scale the gradient of every attached output.
    """

    def __init__(self, net: nn.Module, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Weights sharded by ZeRO-3 are empty here but keep their dtype, which the image must have.
        image = batch["image"].to(next(self.net.parameters()).dtype)
        predictions = self.net(image, batch["spacing_mm"])
        return self.loss(predictions, batch["targets"], batch["mask"])
