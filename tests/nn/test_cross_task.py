"""Task tokens: the reading step against torch's own MultiheadAttention, and what must not depend on order."""

import pytest
import torch
from torch import nn

from mri_ds.nn.cross_task import CrossTaskAttention, ReadImage, TaskBranches


def test_reading_equals_torch_multihead_attention():
    torch.manual_seed(0)
    read, oracle = ReadImage(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([read.query.weight, read.key_value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([read.query.bias, read.key_value.bias]))
        oracle.out_proj.load_state_dict(read.out.state_dict())
    queries, tokens = torch.randn(2, 5, 24), torch.randn(2, 11, 24)
    torch.testing.assert_close(read(queries, tokens), oracle(queries, tokens, tokens)[0], atol=1e-6, rtol=1e-5)


def test_one_image_token_by_hand():
    # With one token to read, every attention weight is 1: the result is the token's value, whatever the query.
    read = ReadImage(2, 1)
    with torch.no_grad():
        read.key_value.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [0.0, 3.0]]))
        read.key_value.bias.zero_()
        read.out.weight.copy_(torch.eye(2))
        read.out.bias.zero_()
    result = read(torch.randn(1, 4, 2), torch.tensor([[[1.0, 1.0]]]))
    torch.testing.assert_close(result, torch.tensor([3.0, 3.0]).expand(1, 4, 2))


def test_order_of_image_tokens_does_not_matter_and_order_of_tasks_carries_over():
    torch.manual_seed(0)
    module, tokens = CrossTaskAttention(16, 2, num_tasks=3), torch.randn(2, 10, 16)
    result = module(tokens)
    assert result.shape == (2, 3, 16)
    torch.testing.assert_close(module(tokens[:, torch.randperm(10)]), result, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        module.task_tokens.copy_(module.task_tokens[[2, 0, 1]].clone())
    torch.testing.assert_close(module(tokens), result[:, [2, 0, 1]], atol=1e-6, rtol=1e-5)


def test_tasks_read_one_another_and_subjects_do_not():
    torch.manual_seed(0)
    module, tokens = CrossTaskAttention(16, 2, num_tasks=2), torch.randn(2, 10, 16)
    before = module(tokens)
    with torch.no_grad():
        module.task_tokens[0] += torch.randn(16)
    after = module(tokens)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-4  # task 1 sees that task 0 changed
    changed = tokens.clone()
    changed[1] += 1.0
    torch.testing.assert_close(module(changed)[0], after[0], atol=1e-6, rtol=1e-5)


def test_every_weight_learns():
    torch.manual_seed(0)
    module = CrossTaskAttention(16, 2, num_tasks=2)
    module(torch.randn(2, 10, 16)).square().sum().backward()
    dead = [name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


def test_branches_start_as_the_identity_and_then_are_a_network_per_task():
    torch.manual_seed(0)
    branches, tasks = TaskBranches(16, 3), torch.randn(2, 3, 16)
    assert torch.equal(branches(tasks), tasks)
    with torch.no_grad():
        branches.outer.normal_()
    for t in range(3):  # each by itself, as two linear layers
        first, second = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
        first.weight.data, second.weight.data = branches.inner[t].T, branches.outer[t].T
        expected = tasks[:, t] + second(nn.functional.gelu(first(branches.norm(tasks[:, t]))))
        torch.testing.assert_close(branches(tasks)[:, t], expected)


def test_branches_of_one_task_learn_from_that_task_alone():
    torch.manual_seed(0)
    module = CrossTaskAttention(16, 2, num_tasks=2, branches=True)
    nn.init.normal_(module.branches.outer)
    module(torch.randn(2, 10, 16))[:, 0].square().sum().backward()
    for weight in (module.branches.inner, module.branches.outer):
        assert weight.grad[0].any() and not weight.grad[1].any()


def test_bf16_stays_near_float32():
    torch.manual_seed(0)
    module, tokens = CrossTaskAttention(32, 2, num_tasks=3), torch.randn(1, 20, 32)
    exact = module(tokens)
    result = module.bfloat16()(tokens.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, atol=0.03 * exact.abs().max().item(), rtol=0)


def test_bad_width_is_named():
    with pytest.raises(ValueError, match="10 cannot be split over 3 heads"):
        CrossTaskAttention(10, 3, num_tasks=1)
