"""Calls `mri-ds` in this process, and says what a refusal looks like."""

from pathlib import Path

from typer.testing import CliRunner, Result

from mri_ds.cli.main import app


def call(*args: str | Path) -> Result:
    """One command line; stdout, stderr and exit code apart."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refusal(*args: str | Path) -> str:
    """The one line of a command that must refuse its input: exit code 2, nothing on stdout, one `error: ...` on stderr."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("recognised "))  # what a layout was taken for
    assert line.startswith("error: ")
    return line
