"""The command `doctor`: what would end a job in the queue, before it is queued."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.config import SCALES
from mri_ds.errors import InputError

LAUNCHERS = ("pdsh", "openmpi", "mpich", "impi", "slurm", "torchrun")


def doctor(
    ds_config: Annotated[Path, typer.Option("--ds_config", "--ds-config", help="DeepSpeed JSON of the run.")],
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many machines.")] = 1,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Ranks on each of them.")] = 1,
    hostfile: Annotated[Path | None, typer.Option("--hostfile", help="As for deepspeed. Default: /job/hostfile, if any.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of shards: a path or a URL.")] = None,
    run: Annotated[Path, typer.Option("--run", help="Run folder, for its room on disk.")] = Path("runs"),
    config: Annotated[Path | None, typer.Option("--config", help="YAML: science.")] = None,
    scale: Annotated[
        str | None,
        option_of("--scale", SCALES, " Default: the JSON's name."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one YAML key; may be repeated.")
    ] = None,
    launcher: Annotated[str, option_of("--launcher", LAUNCHERS)] = "pdsh",
    master_port: Annotated[int, typer.Option("--master_port", "--master-port", help="Where the ranks meet.")] = 29500,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that a node has to answer.")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Look for what would end this run: configuration, nodes (over ssh), data, disk, software. Exit code 2 with the fixes.

    Example: `mri-ds doctor --ds_config ds_configs/xl.json --nodes 4 --slots 8 --hostfile launch/hostfile --data shards`
    """
    one_of(scale, SCALES, "--scale")
    one_of(launcher, LAUNCHERS, "--launcher")
    with console.stdout_for_result():
        from mri_ds.training.doctor.examine import examine
        from mri_ds.training.doctor.finding import Request

        request = Request(
            ds_config=ds_config,
            nodes=nodes,
            slots=slots,
            hostfile=hostfile,
            data=data,
            run=run,
            config=config,
            scale=scale,
            overrides=overrides or [],
            launcher=launcher,
            master_port=master_port,
            timeout_s=timeout,
        )
        result = examine(request)
    if json:
        findings = [finding.as_dict() for finding in result.findings]
        console.print_json({"passed": not findings, "findings": findings, "checked": result.checked})
    else:
        console.print_findings(result.findings)
    if result.findings:
        raise InputError(f"{len(result.findings)} findings", where=ds_config, fix="mend what is listed and ask again")
    if not json:
        print("\n".join(f"checked {line}" for line in result.checked) + "\nnothing found")
