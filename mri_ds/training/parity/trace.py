"""What a run told of itself, and how far another run is from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # relative
NOISE = 3.0  # times the rounding of the plain run by which another run may differ from it


@dataclass
class Trace:
    """Of each update its loss and gradient norm; of some (counted from 1) weights before it and gradients before clipping."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by update, then by our own names, on the CPU
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # likewise, in float32 as the optimiser keeps them

    def save(self, path: Path) -> None:
        torch.save(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        return cls(**torch.load(path, weights_only=True))


def compare(run: Trace, plain: Trace, others: Sequence[Trace], *, dtype: str) -> dict[str, float | str | bool]:
    """Largest relative errors of `run` against `plain`: {"gradient_error", "norm_error", "loss_error", "worst", "passed"}.

    Also "gradient_distance", which is the largest |g - p| / |p| as it is, with nothing allowed for rounding.

    A gradient's error is |g - p| / |p|, p the plain run's, as vectors of one parameter at one update; the largest counts.
    Where a gradient is the small remainder of large sums, rounding alone moves it further than the tolerance. `others` tell by
    how much: plain runs that differ in nothing but rounding (in higher precision, in pieces). An error within NOISE times the
    largest |p - other| counts as one within the tolerance. A gradient of another scale is far outside of both.
    """
    tolerance = TOLERANCE[dtype]
    errors, distance = {}, 0.0
    for step, gradients in plain.gradients.items():
        for name, gradient in gradients.items():
            if norm := float(gradient.double().norm()):
                distance = max(distance, _away(gradient, run.gradients[step][name]) / norm)
            noise = max(_away(gradient, other.gradients[step][name]) for other in others)
            errors[name, step] = _error(run.gradients[step][name], gradient, NOISE * noise, tolerance)
    worst = max(errors, key=lambda key: errors[key])
    found = {
        "gradient_error": errors[worst],
        "norm_error": _largest(run.norms, plain.norms),
        "loss_error": _largest(run.losses, plain.losses),
    }
    told = {**found, "gradient_distance": distance}
    return {**told, "worst": f"{worst[0]}, update {worst[1]}", "passed": all(error <= tolerance for error in found.values())}


def compare_update(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, dtype: str
) -> tuple[float, str]:
    """Largest relative error of how far an update moved a parameter, as a vector, and which one's.

    Weights are float32: what rounding them can move, NOISE * 2^-24 of them, counts as within the tolerance.
    """
    errors = {}
    for name, weight in expected.items():
        rounding = NOISE * 2**-24 * float(weight.double().norm())
        moved, wanted = (value[name].double() - before[name].double() for value in (after, expected))
        errors[name] = _error(moved, wanted, rounding, TOLERANCE[dtype])
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def check_names(run: Mapping[int, Mapping[str, Tensor]], plain: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Every parameter of the plain run must have been read, and no other. Raises RuntimeError with the difference."""
    for step, gradients in plain.items():
        if odd := set(gradients) ^ set(run.get(step, {})):
            raise RuntimeError(f"update {step}: these gradients are in one of the two runs only: {sorted(odd)}")


def _error(vector: Tensor, expected: Tensor, rounding: float, tolerance: float) -> float:
    """Relative; `rounding` away counts as `tolerance`. Where 0 is expected and nothing rounds, only 0 will do."""
    scale = max(float(expected.double().norm()), rounding / tolerance)
    away = _away(vector, expected)
    return away / scale if scale else (0.0 if away == 0 else math.inf)


def _away(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm())


def _largest(run: list[float], plain: list[float]) -> float:
    """NaN counts as infinite; where the plain run has 0, only 0 will do."""
    assert len(run) == len(plain), (len(run), len(plain))
    errors = [abs(a - b) / abs(b) if b else (0.0 if a == 0 else math.inf) for a, b in zip(run, plain, strict=True)]
    return max(math.inf if math.isnan(error) else error for error in errors)
