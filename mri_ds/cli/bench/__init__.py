"""`mri-ds bench`: measurements beside other people's code, one command each."""

from collections.abc import Callable

import typer

from mri_ds.cli.bench import accuracy, data, network, results, training

app = typer.Typer(help="Measure beside other people's code.", no_args_is_help=True)
COMMANDS: dict[str, Callable[..., None]] = {
    "augment": data.augment,
    "loader": data.loader,
    "crop": data.crop,
    "kan": network.kan,
    "metrics": results.metrics,
    "attention": network.attention,
    "scaling": training.scaling,
    "volume": network.volume,
    "network": network.network,
    "moe": network.moe,
    "inference": results.inference,
    "accuracy": accuracy.accuracy,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
