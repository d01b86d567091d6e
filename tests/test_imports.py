"""The rules of the house: imports go down only, never in a circle, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mri_ds"

# A unit is a folder or a file directly under mri_ds. It may import its own folder and lower floors. Where one unit of the
# architecture's floor stands on another (mri_network on heads, evaluation on inference), it has a step of its own here.
FLOORS = [
    {"errors", "quiet"},
    {"config", "sample"},
    {"nn", "losses", "metrics", "augment"},
    {"heads", "data"},
    {"mri_network"},
    {"objectives"},
    {"training"},
    {"inference"},
    {"evaluation"},
    {"report"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
LEVEL = {unit: level for level, units in enumerate(FLOORS) for unit in units}
PLAIN_VALUES_ONLY = ["nn", "losses", "metrics", "augment"]  # know no config object
KNOWS_NO_NETWORK = {"data"}
NETWORK = {"nn", "heads", "losses", "mri_network", "metrics"}
ONLY_IN = {"deepspeed": {"training"}, "torch.distributed": {"training"}}
LIGHT = {"typer", "rich", "pydantic", "yaml"}  # what `mri-ds --help` may pay for, beside the standard library

MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(node: ast.AST) -> Iterator[str]:
    """Dotted names imported anywhere below `node`; `from a import b` gives both "a" and "a.b", of which one exists."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, "write imports in full: from mri_ds.nn.kan import ..."
            yield str(found.module)
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def own_units(names: Iterator[str]) -> set[str]:
    return {parts[1] for name in names if (parts := name.split("."))[0] == "mri_ds" and len(parts) > 1 and parts[1] in LEVEL}


def test_every_unit_has_a_floor() -> None:
    units = {unit_of(path) for path in MODULES} - {"__init__"}
    assert units <= set(LEVEL), f"say in FLOORS where {sorted(units - set(LEVEL))} belong"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_go_down_only(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        assert not own_units(_module_level_imports(parse(path))), "mri_ds/__init__.py is imported by all: import lazily there"
        return
    for other in own_units(imports_of(parse(path))) - {unit}:
        assert LEVEL[other] < LEVEL[unit], f"{unit} may not import {other}: it is not below"
        assert not (unit in PLAIN_VALUES_ONLY and other == "config"), f"{unit} takes plain values, no config object"
        assert not (unit in KNOWS_NO_NETWORK and other in NETWORK), f"{unit} and {other} never meet"
        assert not (unit in NETWORK and other in KNOWS_NO_NETWORK), f"{unit} and {other} never meet"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_parallel_packages_stay_in_training(path: Path) -> None:
    for name in imports_of(parse(path)):
        for package, units in ONLY_IN.items():
            if name == package or name.startswith(package + "."):
                assert unit_of(path) in units, f"{name} is imported in {path.name}"


def test_no_circles() -> None:
    names = {name_of(path) for path in MODULES}
    graph = {name_of(path): set(imports_of(parse(path))) & names - {name_of(path)} for path in MODULES}
    while leaves := [name for name, below in graph.items() if not below]:
        for leaf in leaves:
            del graph[leaf]
        for below in graph.values():
            below.difference_update(leaves)
    assert not graph, f"in or above a circle: {sorted(graph)}"


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) == "cli"], ids=lambda path: path.name)
def test_commands_import_what_they_run_inside(path: Path) -> None:
    for name in _module_level_imports(parse(path)):
        top, *rest = name.split(".")
        if top == "mri_ds":
            assert not rest or rest[0] in {"cli", "config", "errors", "quiet", "__version__"}, (
                f"{name} belongs inside the command"
            )
        else:
            assert top in sys.stdlib_module_names | LIGHT, f"{name} belongs inside the command"


# They plan a run around a network that they do not build: sizes of messages, of memory, of patches.
MAY_ASK_FOR_A_SIZE = {
    "bench/accuracy.py", "bench/volume.py", "cli/train.py", "inference/run.py",
    "training/ds_config/experts.py", "training/ds_config/resolution.py", "training/engine.py", "training/micro_batch.py",
    "training/plan/cost.py", "training/plan/parameters.py",
    "training/plan/report.py", "training/plan/suggestion.py", "training/plan/trace.py", "training/validation.py",
    "training/watch.py",
}  # fmt: skip


def test_the_network_alone_reads_the_model_configuration() -> None:
    """Its parts take plain values; whoever hands the configuration on, or asks it for a size, is named above."""
    readers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.Name) and node.id == "ModelConfig")
        or (isinstance(node, ast.Attribute) and node.attr == "model" and ast.unparse(node.value).endswith("config"))
    }
    assert {name for name in readers if not name.startswith("config/")} - {"mri_network.py"} <= MAY_ASK_FOR_A_SIZE
    own = {name.split("/")[0] for name in MAY_ASK_FOR_A_SIZE}
    assert own.isdisjoint({"nn", "heads", "losses", "metrics", "augment", "data", "objectives", "mri_network.py"})


def test_no_setting_of_the_model_is_without_effect() -> None:
    from mri_ds.config import ModelConfig

    network = next(path for path in MODULES if path.name == "mri_network.py")
    read = {
        node.attr
        for node in ast.walk(parse(network))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("model", "config")
    }
    assert set(ModelConfig.model_fields) - read == {"scale"}  # the name of the row that the others came from


def test_help_pays_for_no_heavy_package() -> None:
    heavy = ["torch", "deepspeed", "numpy", "scipy", "nibabel", "matplotlib", "webdataset", "tensorboard"]
    code = f"import sys, mri_ds.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_no_pockets_for_everything() -> None:
    assert not [path for path in MODULES if path.stem in {"utils", "common", "helpers", "misc"}]


def _module_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports_of(node)
