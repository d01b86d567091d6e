"""What holds for every command there is, found by walking over the app: help, JSON, and how bad input ends."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import call, refusal

from mri_ds.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
CLI_README = ROOT / "mri_ds" / "cli" / "README.md"


def walk(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below an app, groups opened: ("bench", "kan"), command."""
    for own, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from walk(below, (*name, own))
        else:
            yield (*name, own), below


COMMANDS = dict(walk(typer.main.get_command(app)))
IDS = [" ".join(name) for name in COMMANDS]


def is_path(param: Any) -> bool:
    """Versions of typer keep the type in one place or the other."""
    described = getattr(param, "type_descriptor", None)
    return "Path" in str(described.annotation if described is not None else param.type)


def paths_of(command: Any) -> list[Any]:
    """Arguments and options that name what must be there; what is written is made."""
    made = {"--out", "--output", "--picture", "--run", "--keep", "--html"}
    return [param for param in command.params if is_path(param) and not made & set(param.opts)]


def filled(command: Any, absent: Path, tmp_path: Path) -> list[str]:
    """A command line with everything it requires, in which every path to read is `absent`."""
    line: list[str] = []
    for param in command.params:
        if is_path(param):
            is_read = param in paths_of(command)
            if not (param.required or is_read):
                continue
            value = str(absent if is_read else tmp_path / "made")
        elif param.required:
            value = "1"
        else:
            continue
        line += [value] if param.param_type_name == "argument" else [param.opts[0], value]
    return line


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 30 and {("train",), ("init",), ("bench", "kan")} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS, ids=IDS)
def test_help_has_an_example_of_the_command(name: tuple[str, ...]) -> None:
    result = call(*name, "--help")
    assert result.exit_code == 0
    example = " ".join(result.stdout.split("Example:", 1)[1].split())
    assert f"mri-ds {' '.join(name)}" in example


@pytest.mark.parametrize("name", COMMANDS, ids=IDS)
def test_figures_are_there_for_machines(name: tuple[str, ...]) -> None:
    options = {option for param in COMMANDS[name].params for option in param.opts}
    assert "--json" in options, f"mri-ds {' '.join(name)} prints figures that no script can read"


@pytest.mark.parametrize("name", COMMANDS, ids=IDS)
def test_examples_name_options_that_there_are(name: tuple[str, ...]) -> None:
    """Every option of every example in a help text; those behind cross-validate's are train's."""
    own = COMMANDS[name]
    known = {option for param in own.params for option in (*param.opts, *param.secondary_opts)}
    if name == ("cross-validate",):
        known |= {option for param in COMMANDS["train",].params for option in param.opts}
    examples = re.findall(r"`mri-ds ([^`]*)`", own.help or "")
    own_examples = [text for text in examples if text.startswith(" ".join(name))]
    assert own_examples
    for text in own_examples:
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", text)) <= known, text


@pytest.mark.parametrize("name", [n for n in COMMANDS if paths_of(COMMANDS[n])], ids=" ".join)
def test_a_path_that_is_not_there_is_one_line(name: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absent = tmp_path / "absent" / "nothing"
    more = ["--yes"] if name == ("init",) else []
    result = call(*name, *filled(COMMANDS[name], absent, tmp_path), *more)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(absent) in errors[0], result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == "" or name == ("doctor",)  # whose result is what it finds


@pytest.mark.parametrize("name", COMMANDS, ids=IDS)
def test_a_misspelt_option_is_one_line_with_the_nearest(name: tuple[str, ...], tmp_path: Path) -> None:
    if name == ("cross-validate",):
        return check_cross_validate(tmp_path)
    line = refusal(*name, "--jsno")
    assert line == f"error: mri-ds {' '.join(name)}: no such option '--jsno'. Fix: did you mean '--json'?"
    return None


def check_cross_validate(tmp_path: Path) -> None:
    """Its unknown options are train's, and are refused as soon as the data are there to train on."""
    assert "no shards here" in refusal("cross-validate", "--jsno", "--data", tmp_path)


def reference() -> str:
    return CLI_README.read_text().split("<!-- commands:")[1].split("<!-- end of commands -->")[0]


def test_the_reference_lists_every_command() -> None:
    listed = re.findall(r"^\| `mri-ds ([a-z -]+)` \|", reference(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(name) for name in COMMANDS)


def test_the_reference_lists_every_option() -> None:
    """`--name` in a command's row, but for --json and --help, which all have."""
    rows = dict(re.findall(r"^\| `mri-ds ([a-z -]+)` \|[^|]*\|([^|]*)\|", reference(), flags=re.MULTILINE))
    for name, command in COMMANDS.items():
        told = set(re.findall(r"--[\w-]+", rows[" ".join(name)]))
        own = {param.opts[0] for param in command.params if param.opts[0].startswith("--") and not param.hidden}
        assert told == own - {"--json", "--help"}, name


def test_the_reference_is_what_the_app_says() -> None:
    spec = importlib.util.spec_from_file_location("commands_tool", ROOT / "tools/docs/commands.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = CLI_README.read_text()
    assert tool.with_table(text, tool.table()) == text, "run: python tools/docs/commands.py"
