"""From a subject as it was stored to what the network is shown, and back: orientation, grid, intensities, foreground.

`to_canonical` when a subject is sharded or read for prediction, `prepare` when it is shown; `scores_to_labels` and then
`to_input_grid` lead back.
"""

from mri_ds.data.preprocess.foreground import foreground_box
from mri_ds.data.preprocess.grid import grid_shape, to_grid
from mri_ds.data.preprocess.intensities import MIN_ZERO_SHARE, border_minimum, measure, normalize
from mri_ds.data.preprocess.orientation import to_canonical, to_input_grid
from mri_ds.data.preprocess.prepare import Placement, prepare, prepare_placed, scores_to_labels, scores_to_shape, settings
from mri_ds.data.preprocess.propose import dataset_intensities, propose

__all__ = [
    "MIN_ZERO_SHARE",
    "Placement",
    "border_minimum",
    "dataset_intensities",
    "foreground_box",
    "grid_shape",
    "measure",
    "normalize",
    "prepare",
    "prepare_placed",
    "propose",
    "scores_to_labels",
    "scores_to_shape",
    "settings",
    "to_canonical",
    "to_grid",
    "to_input_grid",
]
