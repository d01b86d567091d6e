"""The app `mri-ds`: which commands there are, and how each of them ends.

Exit codes: 0 done; 2 bad input, with one line `error: ...` on stderr (a wrong option is 2 as well); 1 any other failure, with
its traceback or, where the cause is outside of the program, with one line; 130 on Ctrl-C, without a word.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mri_ds import __version__
from mri_ds.cli import (
    bench,
    calibrate,
    console,
    convert,
    cross_validate,
    data,
    doctor,
    network,
    parity,
    plan,
    predict,
    replay,
    report,
    results,
    train,
)
from mri_ds.errors import InputError, RunError
from mri_ds.quiet import be_quiet

COMMANDS: dict[str, Callable[..., None]] = {
    "synthesize": data.synthesize,
    "series": data.series,
    "shard": data.shard,
    "lint": data.lint,
    "info": network.info,
    "plan": plan.plan,
    "doctor": doctor.doctor,
    "train": train.train,
    "convert": convert.convert,
    "parity": parity.parity,
    "replay": replay.replay,
    "evaluate": results.evaluate,
    "predict": predict.predict,
    "cleanup": predict.cleanup,
    "calibrate": calibrate.calibrate,
    "cross-validate": cross_validate.cross_validate,
    "compare": cross_validate.compare,
    "report": report.report,
}
CONTEXTS: dict[str, dict[str, Any]] = {"cross-validate": cross_validate.TRAIN_OPTIONS}


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (InputError, RunError) as err:
            if ctx.params.get("debug"):
                traceback.print_exception(err)
            console.print_error(err)
            raise typer.Exit(2 if isinstance(err, InputError) else 1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    name="mri-ds",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _name, _command in COMMANDS.items():
    app.command(_name, context_settings=CONTEXTS.get(_name))(_command)
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results, warnings and errors alone.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an `error:` line's traceback above it.")] = False,
) -> None:
    """One network for many MRI tasks: make or shard data, train with DeepSpeed, evaluate, predict.

    `mri-ds COMMAND --help` shows a command's options and an example. `mri-ds --install-completion` teaches them to your shell.
    """
    if quiet:
        be_quiet()


def main(args: list[str] | None = None) -> None:
    """Runs the command line in `args` (default: the process's own) and exits."""
    app(args if args is not None else sys.argv[1:], prog_name="mri-ds")
