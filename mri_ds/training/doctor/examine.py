"""All checks of a request, and what they were."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mri_ds.training.doctor.config import check_config
from mri_ds.training.doctor.data import check_data
from mri_ds.training.doctor.environment import check_environment
from mri_ds.training.doctor.finding import Finding, Request
from mri_ds.training.doctor.hostfile import read_hostfile
from mri_ds.training.doctor.nodes import check_nodes


@dataclass(frozen=True)
class Examination:
    findings: list[Finding]
    checked: list[str]  # in words, what was looked at


def examine(request: Request) -> Examination:
    """Every check that can be made, even where others have found something."""
    with _looking_only():
        findings, config, _ = check_config(request)
    checked = [f"{request.ds_config} on {request.nodes} x {request.slots} ranks: keys, combinations, global batch, experts"]
    findings += check_environment(request)
    checked.append("this machine: versions, stale locks, launcher, .deepspeed_env" + (", port" if request.nodes == 1 else ""))
    findings += check_data(request, config)
    checked.append("room for checkpoints" + (f"; shards of {request.data}" if request.data is not None else ""))
    hosts, of_file = read_hostfile(request)
    findings += of_file
    if hosts:
        findings += check_nodes(hosts, request)
        checked.append(f"over ssh: {', '.join(hosts)}: clock, versions, paths, names, port")
    return Examination(findings, checked)


@contextmanager
def _looking_only() -> Iterator[None]:
    """Reading a JSON imports DeepSpeed, for which a single process clears stale locks away and takes a rank: not a doctor."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    os.environ["WORLD_SIZE"] = "2"  # several: someone else's launcher sees to all that
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
