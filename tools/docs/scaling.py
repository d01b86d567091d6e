"""The tables of scaling.md, as `mri-ds plan` gives them.

    python tools/docs/scaling.py            # writes them anew
    python tools/docs/scaling.py --check    # exit code 1 where they differ; with --only xl-64 that one alone

Each table stands between `<!-- plan NAME -->` and `<!-- end -->`.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).with_name("scaling.md")
sys.path.insert(0, str(ROOT))


TENFOLD = [  # ten times xl's weights: twice as wide and deep, twice as many experts, half as wide again
    "model.embed_dim=1536",
    "model.num_layers=32",
    "model.num_heads=24",
    "model.num_experts=16",
    "model.expert_hidden=2048",
]
SLOTS, DEVICE = 8, "h200"
TABLES: dict[str, tuple[list[str], int]] = {
    "xl-64": ([], 64),
    "xl-1024": ([], 1024),
    "10xl-64": (TENFOLD, 64),
    "10xl-1024": (TENFOLD, 1024),
}


def table(name: str) -> str:
    from mri_ds.training.plan.report import make_plan
    from mri_ds.training.plan.science import science_of

    sets, ranks = TABLES[name]
    plan = make_plan(
        science_of("xl", overrides=sets), ROOT / "ds_configs/xl.json", nodes=ranks // SLOTS, slots=SLOTS, device_name=DEVICE
    )
    options = "".join(f" --set {item}" for item in sets)
    lines = [
        f"`mri-ds plan --scale xl --nodes {ranks // SLOTS} --slots {SLOTS} --device {DEVICE}{options}`: "
        f"{plan['parameters']['total'] / 1e9:.2f} G parameters, of these {plan['parameters']['experts'] / 1e9:.2f} G in experts",
        "",
        "| | ds_configs/xl.json | suggested |",
        "|---|---|---|",
    ]
    columns = [plan, plan["suggestion"]] if plan["suggestion"] else [plan]
    lines += [f"| {title} | " + " | ".join(cell(one) for one in columns) + " |" for title, cell in ROWS.items()]
    return "\n".join([*lines, "", f"Breaks first: {plan['breaks_first']}."])


def layout(one: dict[str, Any]) -> str:
    place = one["layout"]
    return f"ZeRO-{place['zero']}, EP {place['ep']}, recomputation {place['recompute']}"


def sent(one: dict[str, Any], *kinds: str) -> str:
    return f"{sum(t['bytes_sent'] for t in one['communication'] if t['collective'] in kinds) / 1e9:.2f} GB"


def memory(name: str) -> Any:
    return lambda one: f"{one['memory'][name] / 1e9:.2f} GB"


ROWS: dict[str, Any] = {
    "layout": layout,
    "micro-batch, global batch": lambda one: f"{one['layout']['micro_batch']}, {one['global_batch']}",
    "weights, whole during a step": lambda one: f"{(one['memory']['weights'] + one['memory']['gathered']) / 1e9:.2f} GB",
    "gradients and optimiser": lambda one: f"{(one['memory']['gradients'] + one['memory']['optimizer']) / 1e9:.2f} GB",
    "activations": memory("activations"),
    "peak of a rank": memory("peak"),
    "host's memory at the start, a rank": memory("host_start"),
    "gradients sent a step": lambda one: sent(one, "reduce_scatter", "all_reduce"),
    "weights gathered a step": lambda one: sent(one, "all_gather"),
    "tokens to experts and back a step": lambda one: sent(one, "all_to_all"),
    "step": lambda one: f"{one['time']['step'] * 1e3:.0f} ms",
    "efficiency": lambda one: f"{one['time']['efficiency']:.0%}",
    "share of the peak FLOP/s": lambda one: f"{one['time']['flops_share']:.1%}",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", choices=list(TABLES))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = options.page.read_text()
    new = text
    for name in [options.only] if options.only else TABLES:
        marks = re.compile(rf"(<!-- plan {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert marks.search(new), f"{options.page} has no place for {name}"
        made = table(name)
        new = marks.sub(lambda found: f"{found[1]}{made}\n{found[2]}", new)  # noqa: B023
    if options.check:
        return int(new != text)
    options.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
