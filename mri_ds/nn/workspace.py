"""Memory that one block of rows after another is computed in.

Without it every block would take fresh memory from the system, which costs more than the arithmetic that fills it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Tensors by name, whose contents are void from one block to the next.

    >>> work = Workspace()
    >>> work.tensor("sum", (2, 3), torch.zeros(1)) is work.tensor("sum", (2, 3), torch.zeros(1))
    True
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Not initialised, on the device of `like` and in its dtype unless another is given; a new one for another shape."""
        held = self._held.get(name)
        if held is None or held.shape != torch.Size(shape):
            held = self._held[name] = like.new_empty(shape, dtype=dtype)
        return held
