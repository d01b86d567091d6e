"""Bad runs of every kind, as the files, ports, locks and installed packages that they are; each is refused with its own code."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mri_ds.training.doctor import environment
from mri_ds.training.doctor.examine import examine
from mri_ds.training.doctor.finding import Request

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "ds_configs/tiny.json"


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path, monkeypatch):
    """An extensions folder without locks, a current folder without .deepspeed_env, a home of its own."""
    (tmp_path / "extensions").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")


def request_of(tmp_path, changes=None, **kw):
    """tiny's JSON with some sections changed (None removes one), one rank on one node."""
    raw = json.loads(TINY.read_text())
    for key, value in (changes or {}).items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(raw))
    return Request(**{"ds_config": path, "master_port": free_port(), "run": tmp_path, **kw})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def codes(request):
    findings = examine(request).findings
    assert all(f.reason and f.fix for f in findings)
    return [f.code for f in findings]


def test_a_good_run_passes_and_says_what_was_checked(tmp_path, shards):
    result = examine(request_of(tmp_path, slots=2, data=shards))
    assert result.findings == []
    text = " ".join(result.checked)
    assert "1 x 2 ranks" in text and str(shards) in text and "locks" in text


# ---- the JSON, the YAML

NATIVE = {"enabled": True, "backend": "native"}
BAD_JSON = {
    "native-moe-zero3": {"expert_parallel": NATIVE},
    "moe-backend": {"expert_parallel": {"backend": "tutel"}},
    "native-key-with-autoep": {"expert_parallel": {"capacity_factor": 1.5}},
    "autoep-sequence-parallel": {"sequence_parallel_size": 2},
    "autoep-tensor-parallel": {"tensor_parallel": {"autotp_size": 2}},
    "autoep-mics": {"zero_optimization": {"mics_shard_size": 2}},
    "autoep-hpz": {"zero_optimization": {"zero_hpz_partition_size": 2}},
    "autoep-quantized": {"zero_optimization": {"zero_quantized_gradients": True}},
    "autoep-load-balance": {"expert_parallel": {"load_balance_coeff": 0.01}},
    "two-precisions": {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
    "zero-stage": {"zero_optimization": {"stage": 4}},
    "offload-stage": {"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}},
    "nvme-path": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
    "unknown-key": {"zero_optimisation": {"stage": 2}},
    "science-in-json": {"train_batch_size": 8},
    "json-type": {"bf16": 1},
    "recompute-level": {"activation_checkpointing": {"level": "blocks"}},
    "micro-batch": {"train_micro_batch_size_per_gpu": 0},
}


@pytest.mark.parametrize("code", BAD_JSON)
def test_a_json_that_cannot_run_is_refused(tmp_path, code):
    assert codes(request_of(tmp_path, BAD_JSON[code], slots=2)) == [code]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_native_experts_pass_below_stage_3(tmp_path, stage):
    changes = {"expert_parallel": {**NATIVE, "capacity_factor": 1.5}, "zero_optimization": {"stage": stage}}
    assert codes(request_of(tmp_path, changes, slots=2)) == []


def test_what_cannot_be_divided_over_the_ranks_is_refused(tmp_path):
    assert codes(request_of(tmp_path, slots=3)) == ["batch-indivisible"]
    assert codes(request_of(tmp_path, {"train_micro_batch_size_per_gpu": 3}, slots=2)) == ["batch-indivisible"]
    assert codes(request_of(tmp_path, {"expert_parallel": {"autoep_size": 3}}, slots=2)) == ["experts-indivisible"]
    assert codes(request_of(tmp_path, {"expert_parallel": {"autoep_size": 4}}, slots=2)) == ["experts-indivisible"]


@pytest.mark.parametrize(("text", "code"), [("{", "json-syntax"), ("[1]", "json-type"), (None, "json-missing")])
def test_what_is_no_json_is_refused(tmp_path, text, code):
    request = request_of(tmp_path)
    request.ds_config.unlink() if text is None else request.ds_config.write_text(text)
    assert codes(request) == [code]


def test_wrong_science_is_refused(tmp_path):
    assert codes(request_of(tmp_path, overrides=["training.lerning_rate=1"])) == ["science"]


# ---- data and disk


def test_data_that_cannot_be_read_are_refused(tmp_path, shards):
    assert codes(request_of(tmp_path, data=tmp_path / "nowhere")) == ["data-unreachable"]
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    next(broken.glob("*.tar")).unlink()
    assert codes(request_of(tmp_path, data=broken)) == ["data-unreachable"]
    (broken / "manifest.json").write_text("{")
    assert codes(request_of(tmp_path, data=broken)) == ["data-unreachable"]


def test_a_server_that_does_not_answer_is_refused(tmp_path):
    assert codes(request_of(tmp_path, data=f"http://127.0.0.1:{free_port()}/shards")) == ["data-unreachable"]


def test_too_little_data_are_refused(tmp_path, shards):
    assert codes(request_of(tmp_path, data=shards, overrides=["training.global_batch=64"])) == ["subjects-too-few"]
    nodes = len(json.loads((shards / "manifest.json").read_text())["splits"]["train"]["shards"]) + 1
    batch = [f"training.global_batch={nodes}"]
    assert codes(request_of(tmp_path, data=shards, nodes=nodes, launcher="torchrun", overrides=batch)) == ["shards-too-few"]
    yaml = tmp_path / "run.yaml"
    yaml.write_text("tasks: {tumour: {kind: segmentation, classes: [none, some]}}\n")
    assert codes(request_of(tmp_path, data=shards, config=yaml)) == ["task-missing"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_too_small_for_its_checkpoints_is_refused(tmp_path):
    """A disk of 16 MiB: tiny's checkpoints (30 MB) do not fit. Mounted in a namespace of its own, which ends with the process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    request_of(tmp_path)
    doctor = [sys.executable, "-m", "mri_ds", "doctor", "--ds_config", tmp_path / "tiny.json", "--run", disk / "run", "--json"]
    script = f"mount -t tmpfs -o size=16m tmpfs {disk} && exec {' '.join(map(str, doctor))} --master_port {free_port()}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, env=project())
    if "mount" in done.stderr and "error:" not in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 2, done.stderr
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["disk-too-small"]


# ---- this machine's software


def project(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*more.pop("first", []), str(ROOT)]), **more}


def installed(folder, name, version):
    """The metadata of another release, ahead of the real one on the path: what importlib.metadata finds is what is installed."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def test_the_release_with_slow_convolutions_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(tmp_path / "old", "torch", "2.9.1"))
    assert codes(request_of(tmp_path)) == ["torch-conv3d"]


def test_a_stale_lock_is_refused_and_a_fresh_one_is_not(tmp_path):
    lock = tmp_path / "extensions/deepspeed_shm_comm/lock"
    lock.parent.mkdir()
    lock.touch()
    assert codes(request_of(tmp_path)) == []
    assert lock.exists()  # the doctor looks, and takes nothing away
    long_ago = time.time() - 2 * environment.STALE_S
    os.utime(lock, (long_ago, long_ago))
    assert codes(request_of(tmp_path)) == ["stale-jit-lock"]


def test_a_taken_port_is_refused(tmp_path):
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        assert codes(request_of(tmp_path, master_port=holder.getsockname()[1])) == ["port-taken"]


@pytest.mark.parametrize("line", ["# for the cluster", ""])
def test_what_crashes_the_launchers_environment_file_is_refused(tmp_path, line):
    Path(".deepspeed_env").write_text(f"OMP_NUM_THREADS=1\n{line}\nDS_ACCELERATOR=cpu\n")
    assert codes(request_of(tmp_path)) == ["deepspeed-env"]


def test_a_launcher_that_is_not_there_is_refused(tmp_path, monkeypatch):
    assert codes(request_of(tmp_path, launcher="pssh")) == ["launcher-unknown"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert codes(request_of(tmp_path, launcher="slurm")) == ["launcher-missing"]


def test_mpi4py_without_a_library_is_refused(tmp_path, monkeypatch):
    """mpi4py is told to load a file that is no library, as it is where none is installed."""
    (tmp_path / "mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("MPI4PY_LIBMPI", str(tmp_path / "mpirun"))
    assert codes(request_of(tmp_path, launcher="mpich")) == ["mpi-library"]


# ---- the hostfile

BAD_HOSTFILE = {
    "hostfile-syntax": "localhost slots=1\nnode2 slot=1\nnode3 slots=1\n",
    "hostfile-twice": "localhost slots=1\nlocalhost slots=1\nnode3 slots=1\n",
    "hostfile-short": "localhost slots=1\n",
    "hostfile-slots": "localhost slots=1\nnode2 slots=0\n",
}


@pytest.mark.parametrize("code", BAD_HOSTFILE)
def test_a_hostfile_that_cannot_be_used_is_refused(tmp_path, ssh, code):
    ssh()
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(BAD_HOSTFILE[code])
    assert code in codes(request_of(tmp_path, nodes=2, hostfile=hostfile, launcher="pdsh"))


def test_several_nodes_need_a_hostfile(tmp_path):
    assert "hostfile-missing" in codes(request_of(tmp_path, nodes=2))
    assert "hostfile-unreadable" in codes(request_of(tmp_path, nodes=2, hostfile=tmp_path / "nowhere"))


# ---- nodes: an ssh on PATH that runs what it is given in a shell of this machine, but for what is wrong with the node

FAKE_SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
[ -f "{folder}/$host" ] && source "{folder}/$host"
exec "$@"
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """ssh({"node2": shell commands}) puts it first on PATH: they run on that node before what is asked of it."""
    folder = tmp_path / "bin"

    def make(nodes=None):
        folder.mkdir(exist_ok=True)
        (folder / "ssh").write_text(FAKE_SSH.format(folder=folder))
        (folder / "ssh").chmod(0o755)
        (folder / "pdsh").write_text("#!/bin/sh\n")
        (folder / "pdsh").chmod(0o755)
        for host, commands in (nodes or {}).items():
            (folder / host).write_text(commands)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # or this machine's own name would be judged

    return make


def two_nodes(tmp_path, **kw):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# two nodes\nnode1 slots=1\nnode2 slots=1\n")
    return request_of(tmp_path, nodes=2, hostfile=hostfile, **kw)


def test_two_nodes_that_are_alike_pass(tmp_path, ssh):
    ssh()
    result = examine(two_nodes(tmp_path))
    assert result.findings == []
    assert "node1, node2" in " ".join(result.checked)


def test_a_node_that_refuses_and_one_that_is_silent_are_named(tmp_path, ssh):
    ssh({"node1": "echo 'Permission denied (publickey).' >&2; exit 255", "node2": "exec sleep 60"})
    start = time.monotonic()
    found = examine(two_nodes(tmp_path, timeout_s=3.0)).findings
    assert time.monotonic() - start < 30  # both at once, and not until the silent one speaks
    assert [(f.code, f.where) for f in found] == [("ssh-refused", "node1"), ("ssh-timeout", "node2")]
    assert "Permission denied" in found[0].reason


def test_a_clock_that_is_wrong_is_refused(tmp_path, ssh):
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "date").write_text("#!/bin/sh\nexec /bin/date -d '90 seconds' \"$@\"\n")
    (clock / "date").chmod(0o755)
    ssh({"node2": f"export PATH={clock}:$PATH"})
    (found,) = examine(two_nodes(tmp_path)).findings
    assert (found.code, found.where) == ("clock-skew", "node2")
    assert float(found.reason.split("+")[1].split()[0]) == pytest.approx(90, abs=5)


def test_another_release_on_a_node_is_refused(tmp_path, ssh):
    old = installed(tmp_path / "old", "deepspeed", "0.18.2")
    ssh({"node2": f"shim() {{ sed -u 's|PYTHONPATH=|PYTHONPATH={old}:|'; }}; exec sh <(shim)"})
    (found,) = examine(two_nodes(tmp_path)).findings
    assert (found.code, found.where) == ("versions-differ", "node2") and "0.18.2" in found.reason


def test_a_node_without_the_project_is_refused(tmp_path, ssh):
    ssh({"node2": f"exec sh <(sed -u 's|{sys.executable}|/opt/other/bin/python|g')"})
    assert codes(two_nodes(tmp_path)) == ["python-missing"]


def test_a_node_that_cannot_see_the_data_is_refused(tmp_path, ssh, shards):
    many = tmp_path / "many"
    shutil.copytree(shards, many)
    ssh({"node2": f"exec sh <(sed -u 's|{many}|/mnt/not_mounted|g')"})
    found = [f for f in examine(two_nodes(tmp_path, data=many)).findings if f.where == "node2"]
    assert [f.code for f in found] == ["data-unreachable"]


def test_the_port_is_looked_at_on_the_first_node(tmp_path, ssh):
    ssh()
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        found = examine(two_nodes(tmp_path, master_port=holder.getsockname()[1])).findings
    assert [(f.code, f.where) for f in found] == [("port-taken", "node1")]


def test_no_ssh_at_all_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert codes(two_nodes(tmp_path)) == ["launcher-missing", "ssh-missing"]


@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="needs Debian's openssh-server")
def test_a_real_sshd_is_asked(tmp_path, ssh, monkeypatch):
    """Over the loopback, with keys of its own; and refused once its key is gone."""
    port, key = free_port(), tmp_path / "key"
    for path in (key, tmp_path / "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    allowed = tmp_path / "authorized_keys"
    shutil.copy(tmp_path / "key.pub", allowed)
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host_key'}\nAuthorizedKeysFile {allowed}\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin prohibit-password\n"
    )
    (tmp_path / "config").write_text(
        f"Host node*\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n IdentitiesOnly yes\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
    )
    real = shutil.which("ssh")
    ssh()
    (tmp_path / "bin/ssh").write_text(f'#!/bin/sh\nexec {real} -F {tmp_path / "config"} "$@"\n')
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", tmp_path / "sshd_config"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert codes(two_nodes(tmp_path, timeout_s=30.0)) == []
        allowed.write_text("")
        assert codes(two_nodes(tmp_path, timeout_s=30.0)) == ["ssh-refused", "ssh-refused"]
    finally:
        server.terminate()
        server.wait()


# ---- the command


def test_the_command_lists_what_it_found_and_exits_with_2(tmp_path):
    request_of(tmp_path, {"expert_parallel": NATIVE})
    doctor = [sys.executable, "-m", "mri_ds", "doctor", "--ds_config", str(tmp_path / "tiny.json"), "--nodes", "2"]
    done = subprocess.run(doctor, capture_output=True, text=True, env=project())
    assert done.returncode == 2
    assert "[native-moe-zero3]" in done.stdout and "[hostfile-missing]" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "2 findings" in done.stderr
    as_json = json.loads(subprocess.run([*doctor, "--json"], capture_output=True, text=True, env=project()).stdout)
    assert as_json["passed"] is False
    assert {f["code"] for f in as_json["findings"]} == {"native-moe-zero3", "hostfile-missing"}
    assert all(set(f) == {"code", "reason", "fix", "where"} and f["fix"] for f in as_json["findings"])
