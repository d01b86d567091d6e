"""A run goes on with another number of ranks, another expert-parallel size, another ZeRO stage, as if nothing had been.

One run of one rank is the yardstick. Two others change their layout every ten steps, each time by `mri-ds train --resume RUN`.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import elastic_ranks
import forked
import launches
import pytest
import torch
from safetensors.torch import load_file, save_file

from mri_ds.errors import CorruptError
from mri_ds.inference.run import load_run
from mri_ds.training.checkpoint.convert import convert_run

SETS = [
    "data.num_workers=0",  # forked ranks are left in the middle, and data workers do not heed the SIGTERM that follows
    "training.steps=40",
    "training.checkpoint_every=10",
    "training.keep_last=1",
    "training.keep_every=10",
    "training.log_every=1",
    "training.image_every=1000",
    "training.global_batch=4",
    "training.lr=0.0005",
    "model.drop_path=0",
    "model.embed_dim=16",
    "model.expert_hidden=16",
    "model.use_kan=false",
]
#          ranks, experts over, ZeRO stage
RESHAPED = [(4, 4, 3), (2, 2, 3), (1, 1, 3), (4, 2, 3)]
RESTAGED = [(2, 2, 2), (2, 2, 0), (1, 1, 3)]  # goes on from the first ten steps of the other


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """{"whole", "reshaped", "restaged"}: run folders of the same forty steps."""
    folder = tmp_path_factory.mktemp("elastic")
    found = {name: folder / name for name in ("whole", "reshaped", "restaged")}
    first = ["--scale=tiny", f"--data={shards}", *(f"--set={item}" for item in SETS)]
    undisturbed = ["--set=training.checkpoint_every=1000", "--set=training.image_every=10"]  # neither may change the course
    go(folder, 1, [*first, *undisturbed, f"--run={found['whole']}", ds_config(folder, 1, 0)])
    for number, (ranks, ep, zero) in enumerate(RESHAPED):
        options = first if number == 0 else []
        where = "--run" if number == 0 else "--resume"
        go(folder, ranks, [*options, f"{where}={found['reshaped']}", ds_config(folder, ep, zero)], leave_after=10 * (number + 1))
        if number == 0:
            shutil.copytree(found["reshaped"], found["restaged"])
    for number, (ranks, ep, zero) in enumerate(RESTAGED):
        go(folder, ranks, [f"--resume={found['restaged']}", ds_config(folder, ep, zero)], leave_after=10 * (number + 2) % 40)
    return found


def go(folder: Path, ranks: int, options: list[str], leave_after: int = 0) -> None:
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    codes = forked.start(ranks, log, forked.command, options, leave_after)
    assert codes == [0] * ranks, log.read_text()[-4000:]


def ds_config(folder: Path, ep: int, zero: int) -> str:
    raw = json.loads((launches.ROOT / "ds_configs/tiny.json").read_text())
    raw["zero_optimization"]["stage"] = zero
    raw["expert_parallel"]["autoep_size"] = ep
    path = folder / f"zero{zero}-ep{ep}.json"
    path.write_text(json.dumps(raw))
    return f"--ds_config={path}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["reshaped", "restaged"])
def test_losses_equal_the_uninterrupted_runs(runs, name):
    expected, got = launches.losses(runs["whole"]), launches.losses(runs[name])
    assert list(got) == list(range(1, 41))
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    rows = [[json.loads(line) for line in (runs[r] / "metrics.jsonl").read_text().splitlines()] for r in ("whole", name)]
    assert [row["learning_rate"] for row in rows[0]] == [row["learning_rate"] for row in rows[1]]


@pytest.mark.timeout(900)
def test_checkpoints_of_all_layouts_convert_to_one_devices_weights(runs, tmp_path):
    """Bit for bit those that the run gathered itself, and a network takes them without DeepSpeed."""
    run = runs["restaged"]
    told = convert_run(run, "safetensors", out=tmp_path / "weights.safetensors")
    assert told["step"] == 40
    expected, got = load_file(run / "model.safetensors"), load_file(tmp_path / "weights.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    for step in (10, 20, 30):  # ranks 4, 2, 2 of ZeRO 3, 2, 0: converting compares with the digests that they saved
        convert_run(run, "fp32", step=step, out=tmp_path / f"{step}.pt")
    states = [torch.load(tmp_path / f"{step}.pt", weights_only=True) for step in (10, 20, 30)]
    assert all(state.keys() == got.keys() for state in states)
    assert not torch.equal(states[0]["encoder.norm.weight"], states[1]["encoder.norm.weight"])
    code = (
        "import sys, torch; from mri_ds.mri_network import BaseMRINet; from mri_ds.config import load_config\n"
        f"config = load_config({str(run / 'config.yaml')!r}); net = BaseMRINet(config.model, config.tasks)\n"
        f"net.load_state_dict(torch.load({str(tmp_path / '20.pt')!r}, weights_only=True), strict=True)\n"
        "assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=launches.environment(), cwd=launches.ROOT, timeout=120)


@pytest.mark.timeout(900)
def test_a_checkpoint_of_two_ranks_predicts_with_the_weights_that_the_run_ended_with(runs):
    """Read as it lies there; the network is on one device."""
    run = runs["restaged"]
    expected = load_file(run / "model.safetensors")
    for _ in range(2):  # the second time from what the first converted
        got = load_run(run / "checkpoints" / "step000040", "cpu").net.state_dict()
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    assert (run / "model-step000040.safetensors").is_file()


@pytest.mark.timeout(900)
def test_deepspeed_loads_the_universal_folder(runs, tmp_path):
    """DeepSpeed's own loader, on one rank, takes the weights of four."""
    told = convert_run(runs["reshaped"], "universal", step=10, out=tmp_path / "step10")
    assert Path(told["out"]).name == "step10"
    log = tmp_path / "log"
    codes = forked.start(1, log, elastic_ranks.load_universal, tmp_path, runs["reshaped"], tmp_path / "weights.safetensors")
    assert codes == [0], log.read_text()
    convert_run(runs["reshaped"], "safetensors", step=10, out=tmp_path / "expected.safetensors")
    expected, got = load_file(tmp_path / "expected.safetensors"), load_file(tmp_path / "weights.safetensors")
    trained = [name for name in expected if not name.endswith("e_score_correction_bias")]  # it leaves buffers as they were
    assert all(torch.equal(got[name], expected[name]) for name in trained)
    # Why restore.py does not use it: gains and biases have no weight decay, and after loading they have that of the matrices.
    # Should this fail one day, DeepSpeed has mended it.
    decays = json.loads((tmp_path / "decays.json").read_text())
    assert set(decays["before"]) == {0.0, 0.02} and set(decays["after"]) == {0.02}


# What must be refused ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(runs, tmp_path_factory):
    """{what was done: run folder}, each with the checkpoint of step 10 of four ranks, whose manifest was made to fit again."""
    folder = tmp_path_factory.mktemp("poisoned")
    done = {"moment": change_moment, "expert": change_expert, "bias": change_bias}
    for name, change in done.items():
        shutil.copytree(runs["reshaped"], folder / name)
        for step in (20, 30, 40):
            shutil.rmtree(folder / name / f"checkpoints/step{step:06d}")
        path = change(folder / name / "checkpoints/step000010")
        manifest = json.loads((path.parent / "manifest.json").read_text())
        facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        manifest["files"][path.name] = facts
        (path.parent / "manifest.json").write_text(json.dumps(manifest))
    return {name: folder / name for name in done}


def change_moment(checkpoint: Path) -> Path:
    """One element of the second moment of a dense parameter, on rank 2."""
    path = checkpoint / "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    state = torch.load(path, weights_only=False)
    zero = state["optimizer_state_dict"]
    dense = next(g["sub_group"] for g in zero["ds_zero_partition_groups"] if "autoep_expert" not in g["families"])
    zero["optimizer_state_dict"]["state"][dense]["exp_avg_sq"][3] += 1e-6
    torch.save(state, path)
    return path


def change_expert(checkpoint: Path) -> Path:
    """One weight of rank 3's expert."""
    path = checkpoint / "zero_pp_rank_3_mp_rank_00_optim_states.pt"
    state = torch.load(path, weights_only=False)
    zero = state["optimizer_state_dict"]
    experts = next(g["sub_group"] for g in zero["ds_zero_partition_groups"] if "autoep_expert" in g["families"])
    zero["fp32_flat_groups"][experts].data[5] += 1e-3
    torch.save(state, path)
    return path


def change_bias(checkpoint: Path) -> Path:
    """The selection bias of the experts, which no digest covers: tokens go to others."""
    path = checkpoint / "state.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("e_score_correction_bias")]:
        tensors[name] = tensors[name] + torch.tensor([10.0, 0.0, 0.0, 10.0])
    save_file(tensors, path)
    return path


@pytest.mark.timeout(900)
def test_what_is_not_what_was_saved_is_refused_by_name(poisoned, tmp_path):
    log = tmp_path / "log"
    assert forked.start(1, log, elastic_ranks.resume_each, poisoned) == [0], log.read_text()
    said = dict(line.split("\t") for line in log.read_text().splitlines() if "\t" in line)
    assert "not what was saved: the second moment (exp_avg_sq) of net." in said["moment"]
    assert "not what was saved: the weight of expert 3 of net.encoder.blocks.0.moe.experts." in said["expert"]
    assert "of the stored probe batch is" in said["bias"] and "was" in said["bias"]
    assert all("the run starts over" in text for text in said.values())
    with pytest.raises(CorruptError, match="the weight of expert 3 of net"):
        convert_run(poisoned["expert"], "safetensors")
    assert not list(poisoned["expert"].glob("*.part"))


def test_a_damaged_file_is_refused_by_its_name(runs, tmp_path):
    shutil.copytree(runs["reshaped"], tmp_path / "run")
    path = tmp_path / "run/checkpoints/step000040/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    log = tmp_path / "log"
    assert forked.start(1, log, forked.command, [f"--resume={tmp_path / 'run'}", ds_config(tmp_path, 1, 3)]) == [2]
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("error: "))
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is not what was written" in line
    assert "step000030 is taken then" in line


@pytest.mark.timeout(300)
def test_ranks_agree_on_what_could_be_written(tmp_path):
    """One rank that cannot write takes the checkpoint back for all, who say the same; the one before stays."""
    log = tmp_path / "log"
    assert forked.start(3, log, elastic_ranks.write_together, tmp_path / "run") == [0, 0, 0], log.read_text()
    said = [line.split("\t")[1] for line in sorted(log.read_text().splitlines()) if "\t" in line]
    refusal = "rank 1 cannot write the checkpoint step000002: No such file or directory: "
    assert said.count("step 1 is complete") == 3
    refusals = [text for text in said if text.startswith(refusal)]
    assert len(refusals) == 3 and len(set(refusals)) == 1
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["latest", "step000001"]
    manifest = json.loads((tmp_path / "run/checkpoints/step000001/manifest.json").read_text())
    assert sorted(manifest["files"]) == ["rank0.pt", "rank1.pt", "rank2.pt"]
