"""The command `plan`: what a run will need, before it is queued."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console
from mri_ds.cli.choices import one_of, option_of
from mri_ds.cli.train import DS_CONFIGS
from mri_ds.config import SCALES


def plan(
    scale: Annotated[str, option_of("--scale", SCALES)] = "small",
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many machines.")] = 1,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Ranks on each of them.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Such as h200, h100, a100; cpu is this machine, measured.")] = "h200",
    ds_config: Annotated[
        Path | None, typer.Option("--ds_config", "--ds-config", help="DeepSpeed JSON. Default: ds_configs/SCALE.json.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML: science (model, data, tasks).")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one YAML key; may be repeated.")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", min=1, help="Subjects of a step. Default: what all ranks have room for.")
    ] = None,
    search: Annotated[bool, typer.Option(help="Look for a better layout.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Say what a run will need: memory of a rank, bytes on the wire, time of a step, and a layout that fits. Builds no weights.

    Example: `mri-ds plan --scale xl --nodes 8 --slots 8 --device h200 --json`
    """
    one_of(scale, SCALES, "--scale")
    from mri_ds.training.devices import DEVICES

    one_of(device, DEVICES, "--device")
    with console.stdout_for_result():
        from mri_ds.training.plan.report import make_plan
        from mri_ds.training.plan.science import science_of

        science = science_of(scale, config_path=config, overrides=overrides or [])
        result = make_plan(
            science,
            ds_config or DS_CONFIGS / f"{scale}.json",
            nodes=nodes,
            slots=slots,
            device_name=device,
            global_batch=global_batch,
            search=search,
        )
    if json:
        console.print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    patch = " x ".join(map(str, result["patch"]))
    total, experts = result["parameters"]["total"], result["parameters"]["experts"]
    print(f"{result['scale']}: {total / 1e6:,.1f} M parameters ({experts / total:.0%} experts), {patch} voxels")
    _print_layout("ds_config", result)
    if result["suggestion"] is not None:
        _print_layout("suggested", result["suggestion"])
    else:
        print("no layout fits this device" if not result["memory"]["fits"] else "")
    print(f"breaks first: {result['breaks_first']}")


def _print_layout(title: str, one: dict[str, Any]) -> None:
    layout, memory, time = one["layout"], one["memory"], one["time"]
    print(
        f"\n{title}: ZeRO-{layout['zero']}, EP {layout['ep']}, recomputation {layout['recompute']}, {layout['precision']}, "
        f"micro-batch {layout['micro_batch']} x {layout['accumulation']} on {layout['ranks']} ranks"
    )
    verdict = "fits" if memory["fits"] else "TOO MUCH"
    names = ("weights", "gathered", "gradients", "optimizer", "bucket", "sending", "update", "activations", "runtime")
    held = [[name, f"{memory[name] / 1e9:.3f}"] for name in names if memory[name]]
    peak = ["at the peak", f"{memory['peak'] / 1e9:.3f} of {memory['device'] / 1e9:.0f}, {verdict}"]
    console.print_table(["memory of a rank", "GB"], [*held, peak])
    if one["communication"]:
        sent = [
            [kind["what"], f"{kind['bytes_sent'] / 1e9:.3f}", f"{kind['seconds'] * 1e3:.1f}"] for kind in one["communication"]
        ]
        console.print_table(["sent by a rank in a step", "GB", "ms"], sent)
    print(f"step {time['step'] * 1e3:.1f} ms ({time['efficiency']:.0%} of it work), {one['samples_per_s']:.1f} samples/s")
