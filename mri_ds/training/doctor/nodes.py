"""The other nodes, asked over ssh, all at once: do they answer, agree on the time, hold the same software, see the same files?

One session per node: a shell that first says it is there, then the time when asked (so that the round trip of that answer, not
of the login, bounds the clock's error), then what its Python says. BatchMode: a password prompt would wait for ever.
"""

import json
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mri_ds.training.doctor.environment import PACKAGES, check_versions, versions
from mri_ds.training.doctor.finding import Finding, Request

MAX_SKEW_S = 2.0  # beyond it time stamps of files and logs mislead, and credentials may be refused
ROOT = Path(__file__).resolve().parents[3]

FACTS = """
import json, os, shutil, socket, sys
from importlib import metadata
facts = {"versions": {}, "paths": {}, "python": sys.version.split()[0]}
for name in json.loads(sys.argv[1]):
    try: facts["versions"][name] = metadata.version(name)
    except metadata.PackageNotFoundError: pass
for path in json.loads(sys.argv[2]): facts["paths"][path] = os.access(path, os.R_OK)
port = int(sys.argv[3])
if port:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try: probe.bind(("", port)); facts["port"] = "free"
        except OSError as err: facts["port"] = err.strerror
try: facts["address"] = socket.gethostbyname(socket.gethostname())
except OSError: facts["address"] = ""
print(json.dumps(facts))
"""


@dataclass
class Answer:
    """What one node said. `error` is set where it did not; `skew_s` is its clock less ours, true to `skew_error_s`."""

    host: str
    error: str = ""
    has_timed_out: bool = False
    skew_s: float = 0.0
    skew_error_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def check_nodes(hosts: Sequence[str], request: Request) -> list[Finding]:
    """All refusals that the nodes' answers give rise to, node by node."""
    if not hosts:
        return []
    if shutil.which("ssh") is None:
        return [Finding("ssh-missing", "ssh is not on PATH", "install openssh-client")]
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        answers = list(pool.map(lambda pair: ask(pair[1], request, is_first=pair[0] == 0), enumerate(hosts)))
    here = versions()
    return [finding for answer in answers for finding in _judge(answer, request, here)]


def ask(host: str, request: Request, *, is_first: bool) -> Answer:
    """One session. The first node is asked for the port too: it is where the ranks meet."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(request.timeout_s))}", host, "sh", "-s"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + request.timeout_s
    answer = Answer(host)
    try:
        _say(process, "echo here")
        _hear(process, end)
        asked = time.time()
        _say(process, "date +%s.%N")
        theirs = float(_hear(process, end))
        heard = time.time()
        answer.skew_s, answer.skew_error_s = theirs - (asked + heard) / 2, (heard - asked) / 2
        _say(process, _python(request, is_first))
        line = _hear(process, end)
        answer.facts = json.loads(line) if line.startswith("{") else {"problem": line}
    except TimeoutError:
        answer.error, answer.has_timed_out = f"no answer within {request.timeout_s:.0f} s", True
    except (OSError, EOFError, ValueError) as err:
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip().splitlines() if process.stderr else []
        answer.error = said[-1] if said else str(err) or "the session ended"
    finally:
        process.kill()
        process.communicate()
    return answer


def _python(request: Request, is_first: bool) -> str:
    port = request.master_port if is_first else 0
    words = [sys.executable, "-c", FACTS, json.dumps(PACKAGES), json.dumps(_paths(request)), str(port)]
    path = os.environ.get("PYTHONPATH", "")
    run = (f"PYTHONPATH={shlex.quote(path)} " if path else "") + shlex.join(words)
    return f"if [ -x {shlex.quote(sys.executable)} ]; then {run} 2>&1 | tail -n 1; else echo no-python; fi"


def _paths(request: Request) -> list[str]:
    """That every node must see: the project, and local data."""
    data = (
        [] if request.data is None or "://" in str(request.data) or ":/" in str(request.data) else [str(request.data.absolute())]
    )
    return [str(ROOT), *data]


def _judge(answer: Answer, request: Request, here: dict[str, str]) -> list[Finding]:
    host, facts = answer.host, answer.facts
    if answer.has_timed_out:
        return [Finding("ssh-timeout", answer.error, f"is the node up? Try `ssh {host} true`", host)]
    if answer.error:
        return [Finding("ssh-refused", answer.error, f"`ssh -o BatchMode=yes {host} true` must work without a password", host)]
    out = []
    if abs(answer.skew_s) - answer.skew_error_s > MAX_SKEW_S:
        reason = f"its clock is {answer.skew_s:+.1f} s (to {answer.skew_error_s:.3f} s) off this one's"
        out.append(Finding("clock-skew", reason, "run chrony or ntpd on all nodes", host))
    if "problem" in facts:
        if facts["problem"] == "no-python":
            fix = "install the project at the same path on all nodes"
            return [*out, Finding("python-missing", f"has no {sys.executable}", fix, host)]
        return [*out, Finding("python-broken", facts["problem"][:200], f"try `ssh {host} {sys.executable} -V`", host)]
    for name, version in here.items():
        theirs = facts["versions"].get(name, "none")
        if theirs != version:
            reason = f"has {name} {theirs}, and this node {version}"
            out.append(Finding("versions-differ", reason, f"install {name}=={version}", host))
    out += check_versions(facts["versions"], host)
    for path, is_there in facts["paths"].items():
        if not is_there:
            code = "project-unreachable" if path == str(ROOT) else "data-unreachable"
            out.append(Finding(code, f"cannot read {path}", "the same paths must lead to the same files on all nodes", host))
    if facts.get("port", "free") != "free":
        reason = f"port {request.master_port}: {facts['port']}"
        out.append(Finding("port-taken", reason, "end what holds it, or give another --master_port", host))
    if request.nodes > 1 and facts["address"].startswith("127.") and not _interface():
        reason = f"its own name leads to {facts['address']}, which other nodes cannot reach"
        out.append(Finding("loopback-name", reason, "correct /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME", host))
    return out


def _interface() -> bool:
    return bool(os.environ.get("GLOO_SOCKET_IFNAME") or os.environ.get("NCCL_SOCKET_IFNAME"))


def _say(process: Any, line: str) -> None:
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()


def _hear(process: Any, end: float) -> str:
    """The next line; TimeoutError at `end`, EOFError where the session is over."""
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), 2**16)
            if not piece:
                raise EOFError("the session ended")
            line += piece
    return line.decode(errors="replace").strip()
