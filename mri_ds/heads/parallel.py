"""ParallelKANHead: Kolmogorov-Arnold heads for many tasks at once.

Axes: B batch, I input features, O outputs of a task, T tasks of one shape.
In: {task: (B, I)}.  Out: {task: (B, O)}.
The layers of one shape, whichever task they serve, are evaluated as one batched operation over (T, B, I); on a GPU groups of
different shapes run on streams of their own. Every result is bit for bit that of one task after another: what is batched treats
each number by itself, and the matrix products keep the order of their sums.
On a CPU no threads are used; `mri-ds bench kan` times them beside this.
Source: KAN, Liu et al. 2024.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mri_ds.nn.kan import OptimizedKANLayer, evaluate, signature
from mri_ds.nn.membership import exchange


class ParallelKANHead(nn.Module):
    """Two KAN layers per task, I -> hidden -> O; with `use_kan=False` the same shape as a plain perceptron.

    Tasks come and go between steps. Each keeps its number, and with it the names of its weights, as long as it lives; a number is
    not given away again, so a checkpoint from before a task came or went still loads: tasks that came later keep their weights,
    those that went are passed over. It reads the weights of its children: under ZeRO-3 they must be gathered for it.

    >>> head = ParallelKANHead(4, {"age": 1, "lesion": 3})
    >>> {task: y.shape[1] for task, y in head({"age": torch.ones(2, 4), "lesion": torch.ones(2, 4)}).items()}
    {'age': 1, 'lesion': 3}
    """

    def __init__(self, in_features: int, outputs: Mapping[str, int], *, hidden: int = 16, use_kan: bool = True) -> None:
        super().__init__()
        self.in_features, self.hidden, self.use_kan = in_features, hidden, use_kan
        self.tasks: list[str] = []
        self._numbers: dict[str, str] = {}  # task -> the name of its head, because a task may bear a name that nn.Module keeps
        self._next, self._came_later = 0, set[str]()
        self._gone: dict[str, str] = {}  # task -> the number that its head had
        self.heads = nn.ModuleDict()
        for task, num_outputs in outputs.items():
            self._insert(task, num_outputs)
        self.register_load_state_dict_pre_hook(_pass_over_absent_tasks)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.use_kan:
            return self.one_after_another(features)
        xs = [features[task] for task in self.tasks]
        for depth in range(2):
            xs = _evaluate_all([self.head_of(task)[depth] for task in self.tasks], xs)
        return dict(zip(self.tasks, xs))

    def one_after_another(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same, a task at a time."""
        return {task: self.head_of(task)(features[task]) for task in self.tasks}

    def head_of(self, task: str) -> nn.Sequential:
        """The two layers of a task. Raises ValueError for an unknown one."""
        if task not in self._numbers:
            raise ValueError(f"unknown task {task!r}: there are {', '.join(self.tasks) or 'none'}")
        return self.heads[self._numbers[task]]  # type: ignore[return-value]

    def add_task(self, task: str, num_outputs: int, *, optimizer: torch.optim.Optimizer | None = None) -> None:
        """A new task with fresh weights, which join the other tasks' group in `optimizer`, or, if it is the first, any group.

        Raises ValueError for a task that is there already.
        """
        if task in self._numbers:
            raise ValueError(f"task {task!r} is there already")
        others = list(self.parameters())
        self._insert(task, num_outputs)
        self._came_later.add(self._numbers[task])
        head = self.head_of(task)
        if others:
            head.to(device=others[0].device, dtype=others[0].dtype)
        head.train(self.training)
        if optimizer is not None:
            elsewhere = [p for group in optimizer.param_groups for p in group["params"]]
            exchange(optimizer, entering=list(head.parameters()), beside=[*others, *elsewhere])

    def remove_task(self, task: str, *, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The task goes, and its weights leave `optimizer` with their moments. Raises ValueError for an unknown one."""
        leaving = list(self.head_of(task).parameters())
        self.tasks.remove(task)
        self._gone[task] = self._numbers.pop(task)
        del self.heads[self._gone[task]]
        if optimizer is not None:
            exchange(optimizer, leaving=leaving)

    @property
    def numbers(self) -> dict[str, int]:
        """Task -> the number of its head, `heads.NUMBER.` in the names of its weights."""
        return {task: int(number) for task, number in self._numbers.items()}

    def load_tasks(self, state: Mapping[str, Tensor], numbers: Mapping[str, int]) -> list[str]:
        """Weights that another head of these `numbers` saved, by the names of tasks; returns the tasks that it did not have."""
        for task, number in numbers.items():
            if task in self._numbers:
                prefix = f"heads.{number}."
                self.head_of(task).load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        return [task for task in self.tasks if task not in numbers]

    def _insert(self, task: str, num_outputs: int) -> None:
        head = (
            nn.Sequential(OptimizedKANLayer(self.in_features, self.hidden), OptimizedKANLayer(self.hidden, num_outputs))
            if self.use_kan
            else nn.Sequential(nn.Linear(self.in_features, self.hidden), nn.SiLU(), nn.Linear(self.hidden, num_outputs))
        )
        self.tasks.append(task)
        self._numbers[task] = str(self._next)
        self.heads[str(self._next)] = head
        self._next += 1


def _pass_over_absent_tasks(head: nn.Module, state: dict[str, Tensor], prefix: str, *more: object) -> None:
    """Before loading: fills in what tasks that came later are, and drops what tasks that went were. Anything else must fit.

    The first checkpoints had the names of tasks where numbers stand now; they load too.
    """
    assert isinstance(head, ParallelKANHead)
    for key in [key for key in state if key.startswith(f"{prefix}heads.")]:
        name, _, rest = key[len(f"{prefix}heads.") :].partition(".")
        number = None if name.isdigit() else head._numbers.get(name, head._gone.get(name))
        if number is not None:
            state[f"{prefix}heads.{number}.{rest}"] = state.pop(key)
    numbers = {key[len(prefix) :].split(".")[1] for key in state if key.startswith(f"{prefix}heads.")}
    gone = {n for n in numbers if n.isdigit() and int(n) < head._next and n not in head.heads}
    for key in [key for key in state if key.startswith(f"{prefix}heads.") and key[len(prefix) :].split(".")[1] in gone]:
        del state[key]
    for number in head._came_later - numbers:
        if number in head.heads:
            state.update({f"{prefix}heads.{number}.{k}": v for k, v in head.heads[number].state_dict().items()})


def _evaluate_all(layers: Sequence[nn.Module], xs: Sequence[Tensor]) -> list[Tensor]:
    """Each layer on its own x (B, I); those of one shape together."""
    groups: dict[object, list[int]] = {}
    for i, (layer, x) in enumerate(zip(layers, xs)):
        assert isinstance(layer, OptimizedKANLayer)
        groups.setdefault((signature(layer), x.shape, x.dtype), []).append(i)

    def together(members: list[int]) -> Callable[[], Tensor]:
        return lambda: evaluate([layers[i] for i in members], torch.stack([xs[i] for i in members]))  # type: ignore[misc]

    results = run_on_streams([together(members) for members in groups.values()], xs)
    out: dict[int, Tensor] = {}
    for members, result in zip(groups.values(), results):
        out |= dict(zip(members, result.unbind()))
    return [out[i] for i in range(len(xs))]


def run_on_streams(work: Sequence[Callable[[], Tensor]], reads: Iterable[Tensor]) -> list[Tensor]:
    """The results of `work`, which reads `reads`; on a GPU each piece on a stream of its own, one after another elsewhere.

    The streams wait for what the caller's stream was given so far, and it waits for them. The allocator is told who else uses a
    tensor, so that memory freed on one stream is not given away while another still reads it. Autograd runs each piece's backward
    pass on the same stream again and joins them by itself.
    """
    reads = list(reads)
    if len(work) < 2 or not reads[0].is_cuda:
        return [piece() for piece in work]
    device = reads[0].device
    here = torch.cuda.current_stream(device)
    streams = [here, *(_stream(device, i) for i in range(1, len(work)))]
    for stream in streams[1:]:
        stream.wait_stream(here)
    results = []
    for piece, stream in zip(work, streams):
        with torch.cuda.stream(stream):
            for x in reads:
                x.record_stream(stream)
            results.append(piece())
    for result, stream in zip(results, streams):
        here.wait_stream(stream)
        result.record_stream(here)
    return results


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same ones at every step: each has a pool of memory of its own, which would otherwise grow with every new stream."""
    return torch.cuda.Stream(device)
