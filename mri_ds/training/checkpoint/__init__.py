"""Checkpoints of a run: sharded ones to resume from, and one file of plain weights at the end.

| file          | what it knows                                                                       |
|---------------|-------------------------------------------------------------------------------------|
| keeper.py     | the order of things: saving, resuming, refusing                                      |
| folder.py     | RUN/checkpoints: what is complete, what is sound, what stays                        |
| writer.py     | a copy at once, the disk in a thread, one commit for all ranks                      |
| shards.py     | DeepSpeed's own sharded state, through our writer; loading without trusting pickles |
| parts.py      | where a rank keeps its part of each parameter, under any ZeRO stage                 |
| digest.py     | fingerprints of parameters and moments that do not depend on the layout             |
| universal.py  | from any sharded checkpoint to whole tensors                                        |
| restore.py    | from whole tensors into an engine of any layout                                     |
| continuity.py | the gate: a stored batch gives what it gave                                         |
| convert.py    | `mri-ds convert`                                                                    |
| export.py     | RUN/model.safetensors: plain weights under BaseMRINet's own names                   |
"""

from mri_ds.training.checkpoint.export import export
from mri_ds.training.checkpoint.keeper import Checkpoints
from mri_ds.training.checkpoint.writer import tell_cause

__all__ = ["Checkpoints", "export", "tell_cause"]
