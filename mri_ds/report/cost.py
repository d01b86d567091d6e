"""What a run cost: time, arithmetic, memory, energy as an estimate that says what it assumes, parameters.

In: Gathered.  Out: a table and its numbers. Energy = seconds of training x ranks x watts of one rank's device, all of them at
that power all the time; hosts, cooling and evaluation are not in it. Watts are from data sheets (TDP), or given.
"""

import math
import statistics
from typing import Any

from mri_ds.mri_network import count_parameters
from mri_ds.report.gather import Gathered
from mri_ds.report.gather import Line as Logged
from mri_ds.report.table import Column, Table, text
from mri_ds.training.devices import TABLE

UNKNOWN_WATTS = 100.0  # of a rank whose device the run does not tell, as a CPU's
# thermal design power, from NVIDIA's data sheets
WATTS = {"h200": 700.0, "h100": 700.0, "h100-pcie": 350.0, "a100": 400.0, "l40s": 350.0, "v100": 300.0}
JOULES_PER_KWH = 3.6e6


def cost(g: Gathered, *, watts: float | None = None) -> dict[str, Any]:
    """Numbers; None where the run does not tell. watts: of one rank's device."""
    logs = [lines for lines in g.curves.values() if lines]
    steps_s = [_training_s(lines) for lines in logs]
    training_s = sum(steps_s) if logs and all(seconds is not None for seconds in steps_s) else None  # type: ignore[arg-type]
    device = _device(g)
    drawn = watts or WATTS.get(device, UNKNOWN_WATTS)
    flops = [_flops(lines) for lines in logs]
    return {
        **count_parameters(g.config),
        "trainings": len(g.members),
        "steps": sum(lines[-1]["step"] for lines in logs) if logs else None,
        "training_s": training_s,
        "wall_s": g.wall_s,
        "step_s": _median(_all(logs, "throughput/step_s")),
        "flops": sum(flops) if flops and all(flops) else None,
        "share_of_peak": _median(_all(logs, "throughput/share_of_peak")),
        "waiting_for_data": _median(_all(logs, "time_share/data")),
        "communication": _median(_all(logs, "time_share/communication")),
        "peak_memory_gib": max(_all(logs, "memory/peak_gib"), default=None),
        "skipped_steps": sum(int(lines[-1].get("nonfinite/skipped_steps") or 0) for lines in logs),
        "ranks": g.ranks,
        "device": device,
        "watts_per_rank": drawn,
        "energy_kwh": training_s * g.ranks * drawn / JOULES_PER_KWH if training_s is not None else None,
    }


def assumption(told: dict[str, Any], *, is_given: bool) -> str:
    """In words, what the energy stands on."""
    power = f"{told['watts_per_rank']:g} W"
    if is_given:
        how = f"{power} for each of {told['ranks']} rank(s), as given with --watts"
    elif told["device"]:
        how = f"{power}, the design power of {told['device']}, for each of {told['ranks']} rank(s)"
    else:
        how = f"{power} for each of {told['ranks']} rank(s): a round figure, as the run does not tell its device (--watts)"
    return f"Energy is an estimate, not measured: seconds of training steps x {how}. Hosts, cooling and evaluation are left out."


def cost_table(told: dict[str, Any], *, is_given: bool) -> Table:
    """What is known, a row each."""
    rows: list[tuple[str, Any, str]] = [
        ("parameters, total", told["parameters_total"], ""),
        ("parameters, active per token", told["parameters_active"], ""),
        ("parameters of experts", told["parameters_experts"], ""),
        ("trainings", told["trainings"], ""),
        ("steps", told["steps"], ""),
        ("seconds per step", _rounded(told["step_s"], 3), "median"),
        ("seconds of training steps", _rounded(told["training_s"], 1), "sum over the log"),
        ("seconds with starts and checkpoints", _rounded(told["wall_s"], 1), "as the clock on the wall"),
        ("arithmetic, PFLOP", _rounded(told["flops"] and told["flops"] / 1e15, 3), "counted by PyTorch, recomputation left out"),
        ("share of the device's peak", _rounded(told["share_of_peak"], 3), "median"),
        ("share of time waiting for data", _rounded(told["waiting_for_data"], 3), "median"),
        ("share of time in communication", _rounded(told["communication"], 3), "median"),
        ("peak memory of a rank, GiB", _rounded(told["peak_memory_gib"], 2), ""),
        ("steps that were not finite", told["skipped_steps"], "they moved nothing"),
        ("energy, kWh", _rounded(told["energy_kwh"], 4), "estimate"),
    ]
    rows = [row for row in rows if row[1] is not None]
    return Table(
        "cost", "Cost of training", (text("what"), Column("value"), text("how")), rows, assumption(told, is_given=is_given)
    )


def _training_s(lines: list[Logged]) -> float | None:
    """Each log's seconds per step x the steps since the log before it."""
    total, before = 0.0, 0
    for line in lines:
        seconds = line.get("throughput/step_s")
        if seconds is not None:
            total, before = total + seconds * (line["step"] - before), line["step"]
    return total or None


def _flops(lines: list[Logged]) -> float | None:
    total, before = 0.0, 0
    for line in lines:
        rate, seconds = line.get("throughput/flops_per_s"), line.get("throughput/step_s")
        if rate is not None and seconds is not None:
            total, before = total + rate * seconds * (line["step"] - before), line["step"]
    return total or None


def _device(g: Gathered) -> str:
    """The row of devices.TABLE whose peak rate the run's log counts with; "" where it is none of them."""
    for lines in g.curves.values():
        for line in lines:
            rate, share = line.get("throughput/flops_per_s"), line.get("throughput/share_of_peak")
            if rate and share:
                peak = rate / share / g.ranks
                for name, device in TABLE.items():
                    if any(
                        math.isclose(peak, known, rel_tol=0.005) for known in (device.bf16, device.fp16, device.fp32) if known
                    ):
                        return name
                return ""
    return ""


def _all(logs: list[list[Logged]], key: str) -> list[float]:
    return [float(line[key]) for lines in logs for line in lines if line.get(key) is not None]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
