"""The command `replay`: look again, on one process, at a training step that was not finite."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ds.cli import console


def replay(
    dump: Annotated[Path, typer.Argument(help="RUN/nonfinite/stepNNNNNN, as the run's last message names it.")],
    json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object on stdout.")] = False,
) -> None:
    """Run the step again that a training stopped at, and name the first layer that gave NaN or infinity.

    One process, no DeepSpeed; exit code 1 where the step is finite this time.

    Example: `mri-ds replay runs/first/nonfinite/step000123`
    """
    from mri_ds.training.replay import replay as run_replay

    with console.stdout_for_result(), console.progress("replay", "micro-batches") as report:
        found = run_replay(dump, progress=report)
    if json:
        console.print_json(found)
    else:
        print("\n".join(_lines(found)))
    if not found["reproduced"]:
        raise typer.Exit(1)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"step {found['step']} in {found['dtype']}: {found['reason']}"]
    if found["weights_not_finite"]:
        lines.append(f"weights not finite before the step: {', '.join(found['weights_not_finite'])}")
    for micro in found["micro_batches"]:
        lines.append(f"rank {micro['rank']}, micro-batch {micro['number']}: loss {micro['loss_then']} then, {micro['loss']} now")
        lines += [f"  {subject}: {loss}" for subject, loss in micro["subject_losses"].items()]
        for key, what in (
            ("input_not_finite", "not finite in the batch itself"),
            ("first_forward", "first not finite in the result of"),
            ("first_backward", "gradient first not finite at the input of"),
            ("gradients_not_finite", "gradients not finite"),
        ):
            if micro[key]:
                lines.append(f"  {what}: {', '.join(micro[key]) if isinstance(micro[key], list) else micro[key]}")
    return lines if found["reproduced"] else [*lines, "not reproduced: everything is finite here"]
