"""The hostfile: `name slots=N` a line, as DeepSpeed's launcher reads it."""

import re
from pathlib import Path

from mri_ds.training.doctor.finding import Finding, Request

USUAL = Path("/job/hostfile")  # where DeepSpeed looks without --hostfile
LINE = re.compile(r"^(\S+)\s+slots=(\d+)\s*(#.*)?$")


def read_hostfile(request: Request) -> tuple[list[str], list[Finding]]:
    """The first `nodes` hosts; none for a single node that names no hostfile."""
    path = request.hostfile or (USUAL if USUAL.is_file() else None)
    if path is None:
        if request.nodes == 1 or request.launcher in ("slurm", "torchrun"):
            return [], []
        reason = f"deepspeed --num_nodes {request.nodes} without a hostfile ends with 'no extra nodes available'"
        return [], [Finding("hostfile-missing", reason, f"give --hostfile, or put one at {USUAL}")]
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        return [], [Finding("hostfile-unreadable", str(err), "copy launch/hostfile.example and name your nodes", str(path))]
    hosts: dict[str, int] = {}
    findings = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.match(line.strip())
        if match is None:
            findings.append(Finding("hostfile-syntax", f"line {number}: {line.strip()!r}", "write `node1 slots=8`", str(path)))
        elif match[1] in hosts:
            findings.append(Finding("hostfile-twice", f"line {number} names {match[1]} again", "name every node once", str(path)))
        else:
            hosts[match[1]] = int(match[2])
    chosen = list(hosts)[: request.nodes]
    if len(hosts) < request.nodes:
        reason = f"names {len(hosts)} nodes, and --nodes is {request.nodes}"
        findings.append(Finding("hostfile-short", reason, "add nodes, or lower --nodes", str(path)))
    for host in chosen:
        if hosts[host] < request.slots:
            reason = f"{host} has slots={hosts[host]}, and --slots is {request.slots}"
            findings.append(Finding("hostfile-slots", reason, "raise it, or lower --slots", str(path)))
    return chosen, findings
