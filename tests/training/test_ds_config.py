import json
from pathlib import Path

import pytest

from mri_ds.config import SCALES, load_config
from mri_ds.errors import InputError
from mri_ds.training import ds_config

CONFIGS = Path(__file__).parents[2] / "ds_configs"


def written(tmp_path, **changes):
    raw = json.loads((CONFIGS / "tiny.json").read_text())
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(raw | changes))
    return path


def resolve(raw, world_size=2, **overrides):
    config = load_config(scale="tiny", overrides=[f"{k}={v}" for k, v in overrides.items()])
    return ds_config.resolve(raw, config, world_size=world_size)


def autos(node):
    if isinstance(node, dict):
        return [x for value in node.values() for x in autos(value)]
    return [node] if node == "auto" else []


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_scales_json_resolves_to_what_deepspeed_accepts(scale, world_size):
    from deepspeed.runtime.config import DeepSpeedConfig

    raw = ds_config.read(CONFIGS / f"{scale}.json")
    out = ds_config.resolve(raw, load_config(scale=scale), world_size=world_size)
    assert autos(out) == []
    assert out["train_batch_size"] == world_size * out["train_micro_batch_size_per_gpu"] * out["gradient_accumulation_steps"]
    assert out["zero_optimization"]["stage"] == 3
    single = ds_config.resolve(raw, load_config(scale=scale), world_size=1)  # DeepSpeed checks the batch against the live world
    assert DeepSpeedConfig(ds_config.for_deepspeed(single)).gradient_clipping == out["gradient_clipping"]


def test_science_comes_from_the_yaml():
    out = resolve(
        ds_config.read(CONFIGS / "tiny.json"), **{"training.lr": 0.5, "training.steps": 40, "training.warmup_fraction": 0.25}
    )
    assert out["optimizer"]["params"]["lr"] == 0.5
    assert out["scheduler"]["params"]["total_num_steps"] == 40
    assert out["scheduler"]["params"]["warmup_num_steps"] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimisation": {}}, "unknown key 'zero_optimisation'. Fix: did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stge": 3}}, "unknown key 'zero_optimization.stge'. Fix: did you mean 'stage'?"),
        ({"bf16": {"enable": True}}, "unknown key 'bf16.enable'. Fix: did you mean 'enabled'?"),
        ({"expert_parallel": {"autoep_sise": 2}}, "did you mean 'autoep_size'?"),
        ({"optimizer": {"type": "AdamW"}}, "set training.lr"),
        ({"gradient_accumulation_steps": 2}, "training.global_batch"),
        ({"activation_checkpointing": {"level": "blocks"}}, "did you mean 'block'?"),
        ({"bf16": True}, "is not an object"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "'zero_optimization.offload_optimizer.devise'. Fix: did you",
        ),
        ({"zero_optimization": {"offload_param": {"nvme_pth": "/"}}}, "did you mean 'nvme_path'?"),
        ({"zero_optimization": {"stage3_prefetch_bucket": 1}}, "did you mean 'stage3_prefetch_bucket_size'?"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4: Input should be 0, 1, 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}, "Input should be 'none', 'cpu' or 'nvme'"),
        ({"aio": {"queue_dept": 8}}, "'aio.queue_dept'. Fix: did you mean 'queue_depth'?"),
        ({"flops_profiler": {"detail": True}}, "did you mean 'detailed'?"),
        ({"comms_logger": {"verbos": True}}, "did you mean 'verbose'?"),
        ({"checkpoint": {"load_univ": True}}, "did you mean 'load_universal'?"),
        ({"data_types": {"grad_accum": "fp32"}}, "did you mean 'grad_accum_dtype'?"),
        ({"data_types": {"grad_accum_dtype": "fp23"}}, "did you mean 'fp32'?"),
        ({"timers": {"throughput": {"enabld": True}}}, "did you mean 'enabled'?"),
        ({"compile": {"deepcompil": True}}, "did you mean 'deepcompile'?"),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            "unknown key 'activation_checkpointing.partition_activations'",
        ),
        ({"tensorboard": {"enabled": True}}, "unknown key 'tensorboard'"),
        ({"elasticity": {"enabled": True}}, "unknown key 'elasticity'"),
        ({"gradient_clipping": "1.0"}, "gradient_clipping = '1.0': Input should be a valid number"),
        ({"gradient_clipping": -1}, "greater than or equal to 0"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu = 0"),
        ({"fp16": {"enabled": True, "loss_scale": "auto"}}, 'fp16.loss_scale = "auto", which nothing decides'),
        ({"steps": 100}, "set training.steps in the YAML"),
        ({"lr": 1e-3}, "set training.lr in the YAML"),
        ({"expert_parallel": {"enabled": True, "top_k": 2}}, "set model.top_k in the YAML"),
        ({"expert_parallel": {"enabled": True, "use_residual": True}}, "set model.residual_experts in the YAML"),
        ({"expert_parallel": {"enabled": True, "backend": "nativ"}}, "did you mean 'native'?"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(tmp_path, changes, message):
    with pytest.raises(InputError, match=r"tiny\.json") as err:
        ds_config.read(written(tmp_path, **changes))
    assert message in str(err.value)


def test_a_key_written_twice_is_named(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text('{"bf16": {"enabled": true}, "bf16": {"enabled": false}}')
    with pytest.raises(InputError, match="'bf16' stands twice"):
        ds_config.read(path)


def test_overrides_write_over_the_file(tmp_path):
    raw = ds_config.read(
        CONFIGS / "tiny.json",
        ["zero_optimization.stage=1", "zero_optimization.offload_optimizer={device: cpu}", "aio.queue_depth=4"],
    )
    assert raw["zero_optimization"]["stage"] == 1
    assert raw["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert raw["aio"] == {"queue_depth": 4}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("zero_optimization.stge=2", "unknown key 'zero_optimization.stge'. Fix: did you mean 'stage'?"),
        ("zero_optimization.stage", "--ds 'zero_optimization.stage' has no value"),
        ("gradient_clipping.norm=2", "'gradient_clipping' is not a section"),
        ("training.lr=1", "'training.lr' is science. Fix: set it in the YAML, or with --set"),
        ("train_batch_size=8", "set training.global_batch in the YAML"),
    ],
)
def test_a_wrong_override_is_named(item, message):
    with pytest.raises(InputError) as err:
        ds_config.read(CONFIGS / "tiny.json", [item])
    assert message in str(err.value)


@pytest.mark.parametrize("item", ["training.gradient_clipping=1", "training.zero_optimization={stage: 3}", "bf16.enabled=true"])
def test_a_knob_of_the_json_in_the_yaml_is_sent_there(item):
    with pytest.raises(InputError, match=r"Fix: set it in the DeepSpeed JSON"):
        load_config(scale="tiny", overrides=[item])


class Listener(dict):
    """A section that notes which keys it is asked for."""

    def __init__(self, value=()):
        super().__init__(value)
        self.asked = set()

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


def keys_that_deepspeed_reads(section):
    from deepspeed.runtime.config import DeepSpeedConfig

    listener = Listener()
    DeepSpeedConfig({"train_batch_size": 1, section: listener})
    return listener.asked


@pytest.mark.parametrize("section", ["aio", "flops_profiler", "data_types", "torch_autocast", "checkpoint"])
def test_sections_without_a_model_of_deepspeeds_hold_what_it_reads(section):
    import re

    from mri_ds.training.ds_config.schema import schema

    ours = set(schema().model_fields[section].annotation.model_fields)
    if section == "torch_autocast":  # looks for its keys one behind the other, and stops at the first that is missing
        import inspect

        from deepspeed.runtime import config, constants

        names = re.findall(r"TORCH_AUTOCAST_[A-Z_]+", inspect.getsource(config))
        assert {getattr(constants, name) for name in names if not name.endswith("DEFAULT")} == ours
        return
    assert keys_that_deepspeed_reads(section) == ours


def test_the_json_holds_no_key_that_deepspeed_does_not_read():
    from deepspeed.runtime.config import DeepSpeedConfig

    from mri_ds.training.ds_config.schema import schema

    listener = Listener({"train_batch_size": 1})
    config = DeepSpeedConfig.__new__(DeepSpeedConfig)
    config.world_size = 1
    config._initialize_params(listener)
    assert set(schema().model_fields) <= listener.asked


PRECISIONS = [  # what the JSON says of bf16 and fp16, (machine has a GPU, it has fast bf16) -> what runs
    ("auto", "auto", (True, True), "bf16"),
    ("auto", "auto", (True, False), "fp16"),
    ("auto", "auto", (False, True), "bf16"),
    ("auto", "auto", (False, False), "fp32"),
    (False, "auto", (True, False), "fp32"),
    ("auto", True, (True, True), "fp16"),
    (True, "auto", (False, False), "bf16"),
    (False, False, (True, True), "fp32"),
]


@pytest.mark.parametrize(("bf16", "fp16", "machine", "expected"), PRECISIONS)
def test_the_machine_decides_an_auto_precision(monkeypatch, bf16, fp16, machine, expected):
    from mri_ds.training.ds_config import precision

    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: machine[0])
    monkeypatch.setattr(precision, "supports_bf16", lambda: machine[1])
    got = precision.precision({"enabled": bf16}, {"enabled": fp16})
    assert [name for name, is_on in got.items() if is_on] == ([] if expected == "fp32" else [expected])


def limit_cases(nvme):
    on = {"zero_optimization.offload_optimizer": f"{{device: nvme, nvme_path: {nvme}}}"}
    native = {"expert_parallel.backend": "native"}
    return [
        ({"bf16.enabled": "true", "fp16.enabled": "true"}, "two-precisions"),
        (native, "native-zero3"),
        ({"compile.blocks": "true"}, "compile-zero3"),
        ({"zero_optimization.zero_hpz_partition_size": "2"}, "autoep-zero3"),
        ({"zero_optimization.zero_quantized_gradients": "true"}, "autoep-zero3"),
        ({"zero_optimization.stage": "0", "zero_optimization.offload_optimizer.device": "cpu"}, "offload-zero0"),
        ({"zero_optimization.stage": "2", "zero_optimization.offload_param.device": "cpu"}, "offload-param"),
        ({"zero_optimization.offload_optimizer": "{device: cpu, ratio: 0.5}"}, "own-adam"),
        ({"zero_optimization.offload_optimizer": "{device: nvme, nvme_path: /absent}"}, "nvme-path"),
        ({"zero_optimization.offload_param": "{device: nvme}"}, "nvme-path"),
        ({**on, "zero_optimization.stage": "2"}, "nvme-stage"),
        (on, "nvme-experts"),
    ]


@pytest.mark.parametrize("index", range(12))
def test_what_cannot_work_is_refused_with_its_reason(tmp_path, index):
    changes, code = limit_cases(tmp_path)[index]
    raw = ds_config.read(CONFIGS / "tiny.json", [f"{key}={value}" for key, value in changes.items()])
    with pytest.raises(InputError, match=rf"\[{code}\]\. Fix: ."):
        resolve(raw)


def test_fp16_on_a_cpu_without_it_is_refused(monkeypatch):
    from mri_ds.training.ds_config import limits

    raw = ds_config.read(CONFIGS / "tiny.json", ["fp16.enabled=true"])
    monkeypatch.setattr(limits, "supports_fp16", lambda: False)
    with pytest.raises(InputError, match=r"\[no-fp16\]"):
        resolve(raw)
    monkeypatch.setattr(limits, "supports_fp16", lambda: True)
    assert resolve(raw)["fp16"]["enabled"] is True


@pytest.mark.parametrize("key", ["capacity_factor", "eval_capacity_factor", "min_capacity"])
def test_a_key_of_the_other_back_end_is_refused(key):
    raw = ds_config.read(CONFIGS / "tiny.json", [f"expert_parallel.{key}=4"])
    with pytest.raises(InputError, match=f"expert_parallel.{key} has no meaning with"):
        resolve(raw)
    raw = ds_config.read(CONFIGS / "tiny.json", ["expert_parallel={enabled: true, backend: native, comm_backend: comm}"])
    with pytest.raises(InputError, match=r"expert_parallel.comm_backend has no meaning with"):
        resolve(raw)


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_the_readme_justifies_every_line():
    text = (CONFIGS / "README.md").read_text().split("## Every line")[1].split("## ")[0]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): row[2] for row in rows}
    used = {}
    for scale in SCALES:
        raw = ds_config.read(CONFIGS / f"{scale}.json")
        for key in leaves(raw):
            value = raw
            for part in key.split("."):
                value = value[part]
            used.setdefault(key, set()).add(
                json.dumps(value) if not isinstance(value, int) else f"{value:,}" if value > 9 else json.dumps(value)
            )
    assert told.keys() == used.keys()
    for key, values in used.items():
        for value in values:
            assert value in told[key], f"{key}: {value} is not in {told[key]}"
    assert all(len(row[3].strip()) > 20 for row in rows)


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "tiny.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tiny\.json"):
        ds_config.read(path)
    with pytest.raises(InputError, match="No such file"):
        ds_config.read(tmp_path / "absent.json")


@pytest.mark.parametrize(("size", "world_size"), [(3, 3), (2, 3), (8, 8), (0, 2)])
def test_experts_that_cannot_be_divided_are_refused(tmp_path, size, world_size):
    raw = ds_config.read(written(tmp_path, expert_parallel={"enabled": True, "autoep_size": size}))
    with pytest.raises(InputError, match=f"must divide both the 4 experts and the {world_size} ranks"):
        resolve(raw, world_size, **{"training.global_batch": world_size})


def test_auto_expert_parallel_takes_the_largest_size_that_fits():
    raw = ds_config.read(CONFIGS / "tiny.json")
    sizes = {w: resolve(raw, w, **{"training.global_batch": w})["expert_parallel"]["autoep_size"] for w in (1, 2, 3, 4, 8)}
    assert sizes == {1: 1, 2: 2, 3: 1, 4: 4, 8: 4}


def test_a_global_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(InputError, match="global_batch = 4 cannot be divided over 3 ranks"):
        resolve(ds_config.read(CONFIGS / "tiny.json"), 3)


def test_accumulation_follows_from_the_global_batch(tmp_path):
    raw = ds_config.read(written(tmp_path, train_micro_batch_size_per_gpu=1))
    assert resolve(raw, 2, **{"training.global_batch": 8})["gradient_accumulation_steps"] == 4
