"""Many heads at once: bit for bit as one after another, while tasks come and go."""

import pytest
import torch

from mri_ds.heads.parallel import ParallelKANHead

OUTPUTS = {"age": 1, "lesion": 3, "type": 2, "volume": 1, "stage": 3}


def features_of(tasks, rows, num_inputs, dtype):
    return {task: torch.randn(rows, num_inputs, dtype=dtype, requires_grad=True) for task in tasks}


def results(out, head, features):
    """Outputs and every gradient."""
    loss = sum((y * torch.arange(1, 1 + y.numel(), dtype=y.dtype, device=y.device).view_as(y)).sum() for y in out.values())
    return [*out.values(), *torch.autograd.grad(loss, [*features.values(), *head.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("rows, num_inputs", [(1, 8), (2, 26), (5, 13), (64, 44), (1031, 100)])
def test_bitwise_equal_to_one_after_another(rows, num_inputs, num_threads, dtype):
    """Odd sizes, where vectors end within a task, and more rows than one block holds."""
    torch.manual_seed(rows)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        head = ParallelKANHead(num_inputs, OUTPUTS).to(dtype)
        features = features_of(OUTPUTS, rows, num_inputs, dtype)
        together = results(head(features), head, features)
        apart = results(head.one_after_another(features), head, features)
    finally:
        torch.set_num_threads(before)
    assert [y.shape for y in together[:5]] == [(rows, n) for n in OUTPUTS.values()]
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)


def test_same_shapes_are_one_call(monkeypatch):
    """Five tasks with three numbers of outputs: one call for all first layers, one for the last layers of each shape."""
    import mri_ds.heads.parallel as parallel

    head, features, calls = ParallelKANHead(6, OUTPUTS), features_of(OUTPUTS, 2, 6, torch.float32), []

    def spy(layers, x):
        calls.append((len(layers), tuple(x.shape)))
        return evaluate(layers, x)

    evaluate = parallel.evaluate
    monkeypatch.setattr(parallel, "evaluate", spy)
    head(features)
    assert calls == [(5, (5, 2, 6)), (2, (2, 2, 16)), (2, (2, 2, 16)), (1, (1, 2, 16))]


def test_a_task_with_another_number_of_rows_or_a_finer_grid_is_evaluated_by_itself():
    torch.manual_seed(0)
    head = ParallelKANHead(6, OUTPUTS)
    features = features_of(OUTPUTS, 4, 6, torch.float32)
    features["lesion"] = torch.randn(7, 6, requires_grad=True)
    head.head_of("age")[0].refine_grid(features["age"].detach(), grid_size=14)
    together, apart = head(features), head.one_after_another(features)
    assert all(torch.equal(together[task], apart[task]) for task in OUTPUTS)


def test_plain_heads_have_no_curves():
    head = ParallelKANHead(6, {"age": 1}, use_kan=False)
    assert [type(m).__name__ for m in head.head_of("age")] == ["Linear", "SiLU", "Linear"]
    assert head({"age": torch.ones(2, 6)})["age"].shape == (2, 1)


# ---- tasks that come and go ------------------------------------------------------------------------------------------


def step(head, optimizer, seed):
    torch.manual_seed(seed)
    features = features_of(sorted(head.tasks), 4, 6, torch.float32)
    optimizer.zero_grad()
    sum(y.square().sum() for y in head(features).values()).backward()
    optimizer.step()


def held(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_tasks_come_and_go_between_steps_and_take_their_weights_along():
    torch.manual_seed(0)
    trunk = torch.nn.Linear(2, 2)
    head = ParallelKANHead(6, {"age": 1, "lesion": 3})
    optimizer = torch.optim.AdamW([{"params": trunk.parameters(), "lr": 1.0}, {"params": head.parameters(), "lr": 0.01}])
    step(head, optimizer, seed=1)
    ages = [p.detach().clone() for p in head.head_of("age").parameters()]
    head.add_task("stage", 4, optimizer=optimizer)
    step(head, optimizer, seed=2)
    stage = list(head.head_of("stage").parameters())
    assert {id(p) for p in stage} <= {id(p) for p in optimizer.param_groups[1]["params"]}
    assert all(optimizer.state[p]["step"] == 1 for p in stage)
    assert all(optimizer.state[p]["step"] == 2 for p in head.head_of("age").parameters())
    assert all(not torch.equal(a, b) for a, b in zip(ages, head.head_of("age").parameters()))
    gone = list(head.head_of("age").parameters())
    head.remove_task("age", optimizer=optimizer)
    left = [p.detach().clone() for p in gone]
    step(head, optimizer, seed=3)
    assert head.tasks == ["lesion", "stage"] and set(head(features_of(head.tasks, 1, 6, torch.float32))) == {"lesion", "stage"}
    assert held(optimizer) == {id(p) for p in [*trunk.parameters(), *head.parameters()]}
    assert not any(p in optimizer.state for p in gone) and all(torch.equal(a, b) for a, b in zip(gone, left))


def test_the_tasks_that_stay_learn_as_if_nobody_had_come_or_gone():
    heads = []
    for others_come in (False, True):
        torch.manual_seed(0)
        head = ParallelKANHead(6, {"age": 1})
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
        for seed in range(4):
            if others_come and seed == 1:
                head.add_task("stage", 3, optimizer=optimizer)
            if others_come and seed == 3:
                head.remove_task("stage", optimizer=optimizer)
            step(head, optimizer, seed)  # features are drawn by task name, "age" first
        heads.append(head)
    for a, b in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_old_checkpoints_load_after_tasks_came_and_went():
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"heads": ParallelKANHead(6, {"age": 1, "lesion": 3})})
    head = net["heads"]
    old = {name: value.clone() for name, value in net.state_dict().items()}
    assert "heads.heads.0.0.coefficients" in old and "heads.heads.1.1.linear.bias" in old
    head.add_task("stage", 4)
    head.remove_task("age")
    fresh = [p.clone() for p in head.head_of("stage").parameters()]
    with torch.no_grad():
        for p in head.head_of("lesion").parameters():
            p.zero_()
    net.load_state_dict(old)
    assert all(torch.equal(value, old[f"heads.heads.1.{name}"]) for name, value in head.head_of("lesion").state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(fresh, head.head_of("stage").parameters()))
    net.load_state_dict(net.state_dict())
    broken = {name: value for name, value in old.items() if name != "heads.heads.1.0.mixture"}
    with pytest.raises(RuntimeError, match=r"1\.0\.mixture"):
        net.load_state_dict(broken)
    with pytest.raises(RuntimeError, match=r"heads\.7\.0\.mixture"):
        net.load_state_dict(old | {"heads.heads.7.0.mixture": torch.zeros(6, 4)})


# Names and shapes of a checkpoint of the first commit: ParallelKANHead(6, {"age": 1, "lesion": 3}, hidden=2), named by task.
FIRST_FORMAT = {
    "heads.age.0.coefficients": (2, 6, 11),
    "heads.age.0.mixture": (6, 4),
    "heads.age.0.linear.weight": (2, 6),
    "heads.age.0.linear.bias": (2,),
    "heads.age.1.coefficients": (1, 2, 11),
    "heads.age.1.mixture": (2, 4),
    "heads.age.1.linear.weight": (1, 2),
    "heads.age.1.linear.bias": (1,),
    "heads.lesion.0.coefficients": (2, 6, 11),
    "heads.lesion.0.mixture": (6, 4),
    "heads.lesion.0.linear.weight": (2, 6),
    "heads.lesion.0.linear.bias": (2,),
    "heads.lesion.1.coefficients": (3, 2, 11),
    "heads.lesion.1.mixture": (2, 4),
    "heads.lesion.1.linear.weight": (3, 2),
    "heads.lesion.1.linear.bias": (3,),
}


def test_a_checkpoint_of_the_first_format_loads_after_tasks_came_and_went():
    torch.manual_seed(0)
    old = {name: torch.randn(shape) for name, shape in FIRST_FORMAT.items()}
    head = ParallelKANHead(6, {"lesion": 3, "age": 1}, hidden=2)  # in another order than it was saved in
    head.load_state_dict(old)
    for task in ("age", "lesion"):
        assert all(torch.equal(value, old[f"heads.{task}.{name}"]) for name, value in head.head_of(task).state_dict().items())
    head.add_task("stage", 4)
    head.remove_task("age")
    fresh = [p.clone() for p in head.head_of("stage").parameters()]
    with torch.no_grad():
        for p in head.head_of("lesion").parameters():
            p.zero_()
    head.load_state_dict(old)
    assert all(torch.equal(value, old[f"heads.lesion.{name}"]) for name, value in head.head_of("lesion").state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(fresh, head.head_of("stage").parameters()))
    with pytest.raises(RuntimeError, match=r"heads\.grade\.0\.mixture"):
        head.load_state_dict(old | {"heads.grade.0.mixture": torch.zeros(6, 4)})


def test_weights_go_by_the_name_of_the_task_into_another_process():
    torch.manual_seed(0)
    saved = ParallelKANHead(6, {"age": 1, "lesion": 3})
    saved.add_task("stage", 4)
    saved.remove_task("age")
    head = ParallelKANHead(6, {"stage": 4, "grade": 2, "lesion": 3})
    assert saved.numbers == {"lesion": 1, "stage": 2}
    assert head.load_tasks(saved.state_dict(), saved.numbers) == ["grade"]
    x = torch.randn(3, 6)
    for task in ("stage", "lesion"):
        assert torch.equal(head.head_of(task)(x), saved.head_of(task)(x))


def test_wrong_tasks_are_named():
    head = ParallelKANHead(6, {"age": 1})
    with pytest.raises(ValueError, match="'age' is there already"):
        head.add_task("age", 1)
    with pytest.raises(ValueError, match="unknown task 'sex': there are age"):
        head.remove_task("sex")
    with pytest.raises(ValueError, match="holds no parameter"):
        head.add_task("sex", 2, optimizer=torch.optim.SGD([{"params": []}]))
