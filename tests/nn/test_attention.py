"""Attention against a softmax written out in float64, windows against their definition pair by pair."""

import math

import numpy as np
import pytest
import torch

from mri_ds.nn.attention import (
    ROTARY_BASE,
    FlashAttention,
    QueryKeyNorm,
    SparseAttention,
    rotary_table,
    rotate,
)
from mri_ds.nn.backends import BackendsRan, attend
from mri_ds.nn.windows import cut

CPU = torch.device("cpu")


def places(grid):
    """Coordinates of all tokens, (N, 3), W fastest."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3)


def rotary_by_complex_numbers(heads, grid):
    """heads (..., N, E) float64: pair (e, e + E/2) as one complex number, times exp(i place speed)."""
    pairs = heads.shape[-1] // 2
    counts = [pairs // 3 + (axis < pairs % 3) for axis in range(3)]
    angles = np.concatenate(
        [places(grid)[:, axis, None] * ROTARY_BASE ** -(np.arange(n) / n) for axis, n in enumerate(counts)], axis=-1
    )
    turned = (heads[..., :pairs] + 1j * heads[..., pairs:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def naive_attention(module, tokens, grid, *, rotary=False, bias=0.0):
    """Softmax attention in float64 numpy with the module's weights, no kernel and no batching trick."""
    weights = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    x = tokens.detach().double().numpy()
    qkv = x @ weights["qkv.weight"].T + weights["qkv.bias"]
    query, key, value = (part.reshape(*x.shape[:2], module.num_heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, -1))
    if "norm.gain" in weights:
        query, key = (
            part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6) * gain
            for part, gain in zip((query, key), weights["norm.gain"])
        )
    if rotary:
        query, key = rotary_by_complex_numbers(query, grid), rotary_by_complex_numbers(key, grid)
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]) + bias
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ value
    return mixed.swapaxes(1, 2).reshape(x.shape) @ weights["out.weight"].T + weights["out.bias"]


def shaken(module):
    """Gains and biases away from their neutral start, so that a test would see them left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("grid", [(2, 3, 4), (1, 5, 1)])
def test_flash_equals_naive_float64(qk_norm, rotary, grid):
    torch.manual_seed(0)
    module = shaken(FlashAttention(32, 2, qk_norm=qk_norm, rotary=rotary))
    tokens = torch.randn(2, math.prod(grid), 32)
    expected = naive_attention(module, tokens, grid, rotary=rotary)
    np.testing.assert_allclose(module(tokens, grid).detach().numpy(), expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    module.double()
    np.testing.assert_allclose(module(tokens.double(), grid).detach().numpy(), expected, atol=1e-12)


def test_flash_with_default_weights_equals_naive_to_1e_6():
    torch.manual_seed(0)
    module, tokens = FlashAttention(64, 4), torch.randn(2, 60, 64)
    expected = naive_attention(module, tokens, (3, 4, 5), rotary=True)
    np.testing.assert_allclose(module(tokens, (3, 4, 5)).detach().numpy(), expected, rtol=0, atol=1e-6)


def test_query_key_norm_by_hand():
    # RMS of (3, 4) is sqrt((9 + 16) / 2) = 3.5355: (3, 4) / 3.5355 = (0.84853, 1.13137); the key's gain of 2 doubles it.
    norm = QueryKeyNorm(2)
    with torch.no_grad():
        norm.gain[1] = 2.0
    query, key = norm(torch.tensor([3.0, 4.0]).expand(2, 1, 1, 1, 2)).flatten(1)
    torch.testing.assert_close(query, torch.tensor([0.84853, 1.13137]), atol=1e-5, rtol=0)
    torch.testing.assert_close(key, torch.tensor([1.69706, 2.26274]), atol=1e-5, rtol=0)


def test_rotary_by_hand():
    # Head width 6: one pair per axis, speed 100^0 = 1 radian a token. Token 1 of grid (1, 1, 2) turns its third pair by 1 radian.
    cos, sin = rotary_table((1, 1, 2), 6, CPU, torch.float32)
    torch.testing.assert_close(cos, torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.540302]]))
    turned = rotate(torch.tensor([[0.0] * 6, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]), cos, sin)
    torch.testing.assert_close(turned[1], torch.tensor([0.0, 0.0, 0.540302, 0.0, 0.0, 0.841471]))


def test_rotary_scores_depend_on_the_offset_alone():
    grid = (4, 5, 6)
    cos, sin = rotary_table(grid, 16, CPU, torch.float64)
    query, key = (rotate(torch.randn(16, dtype=torch.float64).expand(120, 16), cos, sin) for _ in range(2))
    scores = (query @ key.T).view(*grid, *grid)
    torch.testing.assert_close(scores[0, 1, 2, 2, 3, 4], scores[1, 2, 3, 3, 4, 5])
    torch.testing.assert_close(scores[3, 0, 5, 0, 4, 1], scores[3, 0, 4, 0, 4, 0])
    assert abs(scores[0, 0, 0, 0, 0, 1] - scores[0, 0, 0, 0, 1, 0]) > 1e-3  # the axes are told apart


def test_rotary_table_made_in_inference_serves_training_and_is_no_state():
    module, tokens, grid = FlashAttention(12, 2), torch.randn(1, 7, 12), (7, 1, 1)
    with torch.inference_mode():
        module(tokens, grid)
    module(tokens.requires_grad_(), grid).sum().backward()
    assert tokens.grad is not None
    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "out.weight", "out.bias", "norm.gain"}


def test_dropout_in_training_only():
    torch.manual_seed(0)
    module, tokens = FlashAttention(16, 2, dropout=0.5), torch.randn(1, 8, 16)
    assert not torch.equal(module(tokens, (2, 2, 2)), module(tokens, (2, 2, 2)))
    module.eval()
    plain = FlashAttention(16, 2)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(tokens, (2, 2, 2)), plain(tokens, (2, 2, 2)))


@pytest.mark.parametrize("make", [FlashAttention, SparseAttention])
def test_bf16_stays_near_float32(make):
    torch.manual_seed(0)
    module, tokens = make(64, 2), torch.randn(1, 64, 64)
    exact = module(tokens, (4, 4, 4))
    result = module.bfloat16()(tokens.bfloat16(), (4, 4, 4))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize("make", [FlashAttention, lambda d, h: SparseAttention(d, h, window=(2, 1, 2), shift=True)])
def test_gradcheck(make):
    torch.manual_seed(0)
    module = shaken(make(12, 2)).double()
    tokens = torch.randn(1, 6, 12, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters())

    def call(tokens, *values):
        return torch.func.functional_call(module, dict(zip(names, values)), (tokens, (3, 1, 2)))

    assert torch.autograd.gradcheck(call, (tokens, *values))


def softmax_attention(query, key, value):
    query, key, value = (x.detach().double().numpy() for x in (query, key, value))
    scores = np.exp(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]))
    return scores / scores.sum(-1, keepdims=True) @ value


@pytest.mark.parametrize("backend", ["flash", "math"])
def test_each_back_end_equals_a_naive_softmax_in_float64(backend):
    torch.manual_seed(0)
    heads = torch.randn(3, 2, 4, 300, 32)
    with BackendsRan() as ran:
        result = attend(*heads, backends=(backend,))
    assert ran.names == [backend]
    np.testing.assert_allclose(result.numpy(), softmax_attention(*heads), rtol=0, atol=1e-6)
    doubles = [x[:1, :1, :5, :4].double().requires_grad_() for x in heads]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, backends=(backend,)), doubles)


def kernel_of(events):
    """The back end by the profiler's record, which knows nothing of ours."""
    fused = [event.name for event in events if event.name.startswith("aten::_scaled_dot_product_flash")]
    return "flash" if fused else "math" if any(event.name == "aten::bmm" for event in events) else "none"


@pytest.mark.parametrize(
    "backends, dropout, expected",
    [
        (("flash", "math"), 0.0, "flash"),
        (("math", "flash"), 0.0, "math"),  # PyTorch on a CPU would take flash whatever the order
        (("cudnn", "efficient", "flash"), 0.0, "flash"),
        (("flash", "cudnn", "efficient", "math"), 0.5, "math"),  # flash on a CPU has no dropout
    ],
)
def test_the_first_back_end_that_can_runs_and_the_one_told_is_the_one_profiled(backends, dropout, expected):
    module = FlashAttention(32, 2, dropout=dropout, backends=backends)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, BackendsRan() as ran:
        module(torch.randn(1, 24, 32), (2, 3, 4))
    assert ran.names == [expected] == [kernel_of(profile.events())]


def test_the_preference_holds_inside_a_call_only():
    before = torch._C._get_sdp_priority_order(), torch.backends.cuda.flash_sdp_enabled()
    FlashAttention(16, 2, backends=["math"])(torch.randn(1, 2, 16), (1, 2, 1))
    assert before == (torch._C._get_sdp_priority_order(), torch.backends.cuda.flash_sdp_enabled())


def test_back_ends_that_cannot_are_named():
    with pytest.raises(ValueError, match=r"among cudnn, efficient takes torch.float32 on cpu, head width 8.*add 'math'"):
        FlashAttention(16, 2, backends=["cudnn", "efficient"])(torch.randn(1, 2, 16), (1, 2, 1))
    for bad in (["quick"], [], ["math", "math"]):
        with pytest.raises(ValueError, match="name some of flash, cudnn, efficient, math"):
            SparseAttention(16, 2, backends=bad)


def test_the_network_has_them_from_its_configuration():
    from mri_ds.config import TaskConfig, load_config
    from mri_ds.mri_network import BaseMRINet

    sets = ["model.attention_backends=[math]", "model.skip_dropped=true", "model.drop_path=0.5"]
    model = load_config(scale="tiny", overrides=sets).model
    net = BaseMRINet(model, {"cls": TaskConfig(kind="classification", classes=["a", "b"])})
    with BackendsRan() as ran:
        net(torch.randn(1, 1, 16, 16, 16))
    assert "math" in ran.names and {block.attention.backends for block in net.encoder.blocks} == {("math",)}
    assert all(block.drop.skip for block in net.encoder.blocks)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="30 cannot be split over 4 heads"):
        FlashAttention(30, 4)
    with pytest.raises(ValueError, match="at least 6, got 16 / 4 = 4"):
        FlashAttention(16, 4)
    with pytest.raises(ValueError, match="at least 1 token"):
        SparseAttention(16, 4, window=(4, 0, 4))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("grid", [(3, 4, 2), (4, 4, 4)])
def test_sparse_equals_flash_when_one_window_covers_the_grid(grid, shift):
    torch.manual_seed(0)
    flash, sparse = shaken(FlashAttention(32, 2, rotary=False)), SparseAttention(32, 2, window=(4, 4, 4), shift=shift)
    missing = sparse.load_state_dict(flash.state_dict(), strict=False)
    assert missing.missing_keys == ["position_bias"] and not missing.unexpected_keys
    tokens = torch.randn(2, math.prod(grid), 32)
    torch.testing.assert_close(sparse(tokens, grid), flash(tokens, grid), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("grid", [(4, 6, 8), (5, 7, 3), (2, 5, 9)])
def test_sparse_equals_its_definition_pair_by_pair(grid, shift):
    """Tokens i, j meet if floor((place - shift) / window) agrees on every axis; the bias is looked up by place_i - place_j."""
    torch.manual_seed(0)
    window = (2, 4, 3)
    module = shaken(SparseAttention(16, 2, window=window, shift=shift)).double()
    tokens = torch.randn(2, math.prod(grid), 16, dtype=torch.float64)

    used = np.minimum(window, grid)
    moved = np.where(shift & (used < grid), used // 2, 0)
    where = places(grid)
    cell = np.floor((where - moved) / used)
    offset = where[:, None] - where[None] + np.array(window) - 1
    allowed = (cell[:, None] == cell[None]).all(-1)
    inside = np.where(allowed[..., None], offset, 0)
    bias = module.position_bias.detach().numpy()[:, inside[..., 0], inside[..., 1], inside[..., 2]]
    expected = naive_attention(module, tokens, grid, bias=np.where(allowed, bias, -np.inf))
    np.testing.assert_allclose(module(tokens, grid).detach().numpy(), expected, atol=1e-12)


def test_windows_come_back_to_their_place():
    tokens = torch.arange(2 * 5 * 3 * 4).view(2, 60, 1)
    windows = cut((5, 3, 4), (3, 2, 4), (1, 1, 0), CPU)
    assert windows.take(tokens).shape == (2 * 2 * 2 * 1, 24, 1)
    assert torch.equal(windows.give_back(windows.take(tokens), batch=2), tokens)


def test_position_bias_learns():
    torch.manual_seed(0)
    module = SparseAttention(16, 2, window=(2, 2, 2))
    module(torch.randn(1, 27, 16), (3, 3, 3)).square().sum().backward()
    assert module.position_bias.grad is not None
    assert (module.position_bias.grad != 0).all()


@pytest.mark.parametrize("grid", [(5, 7, 3), (4, 6, 8)])
def test_part_by_part_equals_the_plain_call_forward_and_backward(grid, monkeypatch):
    """Dropout so small that nothing is dropped takes PyTorch's own path through one call for every run of windows."""
    from mri_ds.nn import windows

    monkeypatch.setattr(windows, "SCORES_AT_ONCE", 2000)  # several parts
    torch.manual_seed(0)
    module = shaken(SparseAttention(16, 2, window=(2, 4, 3), shift=True)).double()
    tokens = torch.randn(2, math.prod(grid), 16, dtype=torch.float64, requires_grad=True)
    found = {}
    for dropout in (0.0, 1e-300):
        module.dropout = dropout
        torch.manual_seed(0)
        loss = module(tokens, grid).square().sum()
        found[dropout] = torch.autograd.grad(loss, [tokens, *module.parameters()])
    for ours, plain in zip(found[0.0], found[1e-300], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_windows_of_one_kind_stand_together():
    """Shifted 4^3 windows of a 32^3 grid: the seam can lie across any of three axes, so there are 8 kinds of masks for 512."""
    runs = cut((32, 32, 32), (4, 4, 4), (2, 2, 2), CPU).runs
    assert len(runs) == 8 and sum(stop - start for start, stop, _ in runs) == 512
    assert [stop - start for start, stop, meets in runs if meets is None] == [7**3]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("make", [FlashAttention, lambda *a, **k: SparseAttention(*a, window=(2, 2, 2), shift=True, **k)])
def test_no_sample_gives_no_sample_and_a_gradient_of_zero_to_every_weight(make, dropout):
    module = make(16, 2, dropout=dropout)
    out = module(torch.randn(0, 27, 16), (3, 3, 3))
    assert out.shape == (0, 27, 16)
    out.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
