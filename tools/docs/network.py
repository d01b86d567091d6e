"""The picture of the network in the README: from volume to tasks, with the shape at each joint, as the modules give it.

    python tools/docs/network.py            # draws tools/pictures/network.svg anew
    python tools/docs/network.py --check    # exit code 1 where a shape is no longer what the picture says

Shapes are those of `base` on one 128^3 volume with two channels and the demo's three tasks, taken from a real forward pass.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "tools/pictures/network.svg"
sys.path.insert(0, str(ROOT))

SCALE, CHANNELS, SIDE = "base", 2, 128
BLUE, GREEN, ORANGE, GREY, LINE = "#dce9f7", "#dff0dc", "#fbe6cf", "#efefef", "#444444"


class Box(NamedTuple):
    x: float
    y: float
    title: str
    text: str
    colour: str


def joints() -> dict[str, str]:
    """{joint: shape}, by a forward pass on the CPU with hooks on the modules; about 4 GiB and some seconds."""
    import torch

    from mri_ds.config import TaskConfig
    from mri_ds.mri_network import create_sota_net

    tasks = {
        "tissue": TaskConfig(kind="segmentation", classes=[f"class{i}" for i in range(7)]),
        "lesion": TaskConfig(kind="classification", classes=["none", "few", "many"]),
        "age": TaskConfig(kind="regression", unit="years"),
    }
    net = create_sota_net(tasks, scale=SCALE, in_channels=CHANNELS).eval()
    seen: dict[str, Any] = {}
    for name in ("features", "stem", "embedding", "encoder", "decoder", "cross_task"):
        getattr(net, name).register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out))
    with torch.inference_mode():
        image = torch.randn(1, CHANNELS, SIDE, SIDE, SIDE)
        out = net(image)
    full, half = seen["stem"]
    tokens, grid, fine = seen["embedding"]
    assert tokens.shape[1] == grid[0] * grid[1] * grid[2]
    found = {"image": image, "features": seen["features"], "full": full, "half": half, "fine": fine, "tokens": tokens}
    found |= {"encoded": seen["encoder"], "decoded": seen["decoder"][0], "task tokens": seen["cross_task"]} | out
    return {name: _shape(tensor.shape[1:]) for name, tensor in found.items()} | {"grid": _shape(grid)}


def _shape(sizes: Any) -> str:
    """(16, 128, 128, 128) -> "16 × 128³": a run of three equal sizes is a cube."""
    sizes = list(sizes)
    if len(sizes) >= 3 and len(set(sizes[-3:])) == 1:
        return " × ".join([*map(str, sizes[:-3]), f"{sizes[-1]}³"])
    return " × ".join(map(str, sizes)) or "1"


def draw(shapes: dict[str, str], path: Path) -> None:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    from mri_ds.mri_network import describe

    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mri_ds", "font.family": "sans-serif", "font.size": 9})
    scale = describe(SCALE)
    layers = f"attention and {scale['top_k']} of\n{scale['num_experts']} experts a token"
    boxes = {
        "image": Box(0, 1, "volume", f"{CHANNELS} × {SIDE}³", GREY),
        "features": Box(1.6, 1, "differential\nfeatures", "Gaussian gradients\nin mm", BLUE),
        "stem": Box(3.25, 1, "stem", "two\nconvolutions", BLUE),
        "embedding": Box(5.0, 1, "cube embedding", "overlapping cubes of\nthree sizes, positions", BLUE),
        "encoder": Box(7.1, 1, f"{scale['num_layers']} transformer layers", layers, GREEN),
        "decoder": Box(9.1, 1.75, "decoder", "upsample, add skip,\nconvolve, three times", ORANGE),
        "voxel": Box(11, 1.75, "voxel heads", "at full and\nhalf resolution", ORANGE),
        "cross": Box(9.1, 0.25, "cross-task attention", "a token per task\nreads all tokens", ORANGE),
        "kan": Box(11, 0.25, "volume heads", "KAN: learned\nB-spline curves", ORANGE),
        "tissue": Box(12.5, 1.75, "segmentation", shapes["tissue"], GREY),
        "lesion": Box(12.5, 0.55, "classification", shapes["lesion"], GREY),
        "age": Box(12.5, -0.05, "regression", shapes["age"], GREY),
    }
    figure = Figure(figsize=(13.5, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.6, 13.15), ylim=(-0.5, 3.25))
    axes.set_axis_off()
    shown = {}
    for name, box in boxes.items():
        style = {"boxstyle": "round,pad=0.35", "facecolor": box.colour, "edgecolor": "#555555", "linewidth": 0.8}
        shown[name] = axes.text(box.x, box.y, f"{box.title}\n{box.text}", ha="center", va="center", bbox=style, zorder=3)
    figure.draw_without_rendering()  # from here on the boxes know their sizes, at which arrows end
    for start, end, text, (x, y) in [
        ("image", "features", "", (0, 0)),
        ("features", "stem", shapes["features"], (2.6, 1.36)),
        ("stem", "embedding", shapes["half"], (4.0, 1.36)),
        ("embedding", "encoder", shapes["tokens"], (6.08, 1.36)),
        ("encoder", "decoder", shapes["encoded"], (7.9, 1.62)),
        ("encoder", "cross", shapes["encoded"], (7.9, 0.42)),
        ("decoder", "voxel", shapes["decoded"], (10.15, 2.0)),
        ("cross", "kan", shapes["task tokens"], (10.15, 0.5)),
        ("voxel", "kan", "region\nstatistics", (11.45, 1.05)),
        ("voxel", "tissue", "", (0, 0)),
        ("kan", "lesion", "", (0, 0)),
        ("kan", "age", "", (0, 0)),
    ]:
        ends = {"patchA": shown[start].get_bbox_patch(), "patchB": shown[end].get_bbox_patch(), "shrinkA": 1, "shrinkB": 1}
        a, b = boxes[start], boxes[end]
        axes.annotate("", (b.x, b.y), (a.x, a.y), arrowprops={"arrowstyle": "-|>", "color": LINE, **ends}, zorder=2)
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=LINE)
    for start, x, y, down, text in [  # skips: up from their box, along, down into the decoder
        ("stem", 3.1, 3.0, 9.3, f"full resolution: {shapes['full']}"),
        ("stem", 3.4, 2.7, 9.1, f"half: {shapes['half']}"),
        ("embedding", 5.0, 2.4, 8.9, f"finer cubes: {shapes['fine']}"),
    ]:
        axes.plot([x, x, down], [boxes[start].y, y, y], color=LINE, linewidth=1, zorder=1)
        ends = {"patchB": shown["decoder"].get_bbox_patch(), "shrinkA": 0, "shrinkB": 1}
        axes.annotate("", (down, 1.75), (down, y), arrowprops={"arrowstyle": "-|>", "color": LINE, **ends}, zorder=2)
        axes.text(6.3, y + 0.02, text, ha="center", va="bottom", fontsize=8, color=LINE)
    caption = f"Shapes of `{SCALE}` for one volume of {CHANNELS} × {SIDE}³ voxels; tokens stand on a grid of {shapes['grid']}."
    axes.text(-0.5, -0.4, caption, fontsize=8, color="#555555")
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    asked = parser.parse_args()
    shapes = joints()
    if not asked.check:
        draw(shapes, asked.picture)
        return 0
    gone = missing(shapes, asked.picture.read_text())
    for joint in gone:
        print(f"{asked.picture}: shows no {shapes[joint]} ({joint}). Fix: python tools/docs/network.py", file=sys.stderr)
    return 1 if gone else 0


def missing(shapes: dict[str, str], picture: str) -> list[str]:
    """The joints whose shape does not stand in the picture."""
    return [
        joint for joint, shape in shapes.items() if not re.search(rf"(^|[^\d× ]|: |of ) *{re.escape(shape)}([^\d]|$)", picture)
    ]


if __name__ == "__main__":
    sys.exit(main())
