"""Why a network predicts what it does: maps on the input's own grid, curves of its heads, a matrix of its tasks.

| explanation | file | what it says | source |
|---|---|---|---|
| rollout | `rollout.py` | which tokens a prediction was gathered from, through all layers of attention | Abnar and Zuidema 2020 |
| occlusion | `occlusion.py` | how far a value falls when a box is covered | Zeiler and Fergus 2014 |
| gradients | `gradients.py` | how a value is shared out among voxels, to the last bit of it | Sundararajan et al. 2017 |
| experts | `experts.py` | which experts each voxel's token visited, in every layer | |
| kan | `kan_curves.py` | the curves that the heads have learned | Liu et al. 2024 |
| tasks | `task_attention.py` | how much the volume tasks read of one another | |

`scene.py` has the subject as the network sees it, and the way back; `target.py` the one number that is explained.
"""
