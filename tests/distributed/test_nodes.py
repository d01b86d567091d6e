"""The command that users type, on four machines: `deepspeed --num_nodes 4 --hostfile ... launch/train.py`, over pdsh and ssh."""

import json
import sys
from pathlib import Path

import launches
import pytest
from cluster import nodes, why_not

NODES = 4
SETS = ["training.steps=6", "training.log_every=1", "training.global_batch=4", "model.drop_path=0", "training.lr=0.0005"]
SETS += ["data.num_workers=0"]
# xl's JSON as it is, its network made small
SMALL_XL = ["model.num_layers=1", "model.embed_dim=24", "model.num_heads=2", "model.expert_hidden=16", "model.stem_channels=4"]
DEEPSPEED = Path(sys.executable).parent / "deepspeed"

pytestmark = pytest.mark.skipif(bool(why_not("pdsh")), reason=why_not("pdsh"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    with nodes(folder / "cluster", NODES) as cluster:
        yield cluster


def options(name: str, shards: Path, run: Path, sets: list[str]) -> list[str]:
    pairs = [x for item in [*SETS, *sets] for x in ("--set", item)]
    return ["--ds_config", f"ds_configs/{name}.json", "--data", str(shards), "--run", str(run), *pairs]


def train_on_nodes(cluster, folder: Path, arguments: list[str]) -> str:
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"node{i + 1} slots=1\n" for i in range(NODES)))
    launcher = [DEEPSPEED, "--num_nodes", str(NODES), "--hostfile", hostfile, "launch/train.py"]
    return launches.run(cluster.on("head", *launcher, *arguments, HOME=str(folder)), folder / "log", timeout_s=600)


def train_alone(folder: Path, arguments: list[str]) -> Path:
    launches.run([sys.executable, "launch/train.py", *arguments, "--ranks", "1"], folder / "log.one", timeout_s=300)
    return folder / "one"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "sets"), [("tiny", []), ("xl", SMALL_XL)])
def test_four_machines_equal_one_rank(cluster, shards, tmp_path, name, sets):
    run = tmp_path / "run"
    text = train_on_nodes(cluster, tmp_path, options(name, shards, run, sets))
    one = train_alone(tmp_path, options(name, shards, tmp_path / "one", sets))
    told = [line for line in text.splitlines() if "4 ranks on" in line]
    assert told == ["node1: 4 ranks on node1, node2, node3, node4 (gloo)"]  # rank 0 alone, which pdsh says is on node1
    resolved, plain = (json.loads((folder / "ds_config.json").read_text()) for folder in (run, one))
    assert resolved["zero_optimization"]["stage"] == 3 and resolved["expert_parallel"]["autoep_size"] == NODES
    assert resolved["bf16"]["enabled"] == plain["bf16"]["enabled"]
    expected, got = launches.losses(one), launches.losses(run)
    assert list(got) == list(range(1, 7))
    tolerance = 2e-2 if resolved["bf16"]["enabled"] else 1e-5  # xl is bf16 where the CPU has it
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=tolerance)
    events = list(run.glob("**/events.out.tfevents.*"))
    assert len(events) == 1 and "node1" in events[0].name
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6
    assert (run / "model.safetensors").is_file()
