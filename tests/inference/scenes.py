"""Small untrained networks of every kind of attention, and the scenes they look at."""

import math

import numpy as np
import torch
from networks import SPACING, TASKS
from torch import nn

from mri_ds.config import DataConfig, RunConfig, load_config
from mri_ds.inference.explain.scene import Scene, set_scene
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet
from mri_ds.sample import Sample

SMALL = {"embed_dim": 24, "num_layers": 1, "num_heads": 2, "num_experts": 4, "expert_hidden": 16, "token_stride": (4, 4, 4)}


def make_run(*, seed=0, tasks=TASKS, channels=("T1w",), patch=(16, 16, 16), **model) -> Run:
    chosen = load_config(scale="tiny").model.model_copy(update={**SMALL, "in_channels": len(channels), **model})
    config = RunConfig(model=chosen, data=DataConfig(spacing_mm=SPACING, patch=patch), tasks=tasks)
    torch.manual_seed(seed)
    net = BaseMRINet(config.model, config.tasks)
    for parameter in net.parameters():  # an untrained head is all bias
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    return Run(net.eval(), config, list(channels), torch.device("cpu"), digest="made here")


def make_sample(shape, *, channels=1, spacing_mm=SPACING, seed=0) -> Sample:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.normal(size=(channels, *(-(-n // 4) for n in shape))), np.ones((1, 4, 4, 4)))
    image = coarse[:, : shape[0], : shape[1], : shape[2]] + 0.1 * rng.normal(size=(channels, *shape))
    affine = np.diag([*spacing_mm, 1.0])
    return {
        "subject_id": "made", "image": image.astype(np.float32), "affine": affine,
        "spacing_mm": np.array(spacing_mm), "targets": {},
    }  # fmt: skip


def make_scene(shape=(12, 16, 14), *, overlap=0.5, **run) -> Scene:
    run = make_run(**run)
    return set_scene(run, make_sample(shape, channels=len(run.channels)), overlap=overlap)


def places(grid):
    """Coordinates of all tokens, (N, 3), W fastest."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3)


def naive_map(module, tokens, grid, *, base=100.0):
    """(B, N, N): softmax attention in float64 numpy, mean over heads; windows by their definition, pair by pair."""
    weights = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    x = tokens.detach().double().numpy()
    qkv = x @ weights["qkv.weight"].T + weights["qkv.bias"]
    heads = module.num_heads
    query, key = (part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, -1)[:2])
    query, key = (
        part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6) * gain for part, gain in zip((query, key), weights["norm.gain"])
    )
    where, bias = places(grid), 0.0
    if "position_bias" in weights:
        window = [min(w, n) for w, n in zip(module.window, grid)]
        shift = [w // 2 if module.shift and w < n else 0 for w, n in zip(window, grid)]
        cell = np.floor_divide(where - shift, window)
        offsets = where[:, None] - where[None] + [w - 1 for w in module.window]
        meets = (cell[:, None] == cell[None]).all(-1)
        near = offsets.clip(0, [2 * w - 2 for w in module.window])
        bias = np.where(meets, weights["position_bias"][:, near[..., 0], near[..., 1], near[..., 2]], -np.inf)
    elif module.rotary:
        pairs = query.shape[-1] // 2
        counts = [pairs // 3 + (axis < pairs % 3) for axis in range(3)]
        angles = np.concatenate([where[:, a, None] * base ** -(np.arange(n) / n) for a, n in enumerate(counts)], axis=-1)
        query, key = ((part[..., :pairs] + 1j * part[..., pairs:]) * np.exp(1j * angles) for part in (query, key))
        query, key = (np.concatenate([part.real, part.imag], axis=-1) for part in (query, key))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]) + bias
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return (scores / scores.sum(-1, keepdims=True)).mean(axis=1)
