"""The picture of the network shows the shapes that the network has today."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/docs/network.py"


def test_the_picture_is_current_and_an_old_one_is_noticed():
    spec = importlib.util.spec_from_file_location("network_picture", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    shapes, shown = tool.joints(), tool.PICTURE.read_text()
    assert tool.missing(shapes, shown) == [], "run: python tools/docs/network.py"
    assert tool.missing(shapes, shown.replace(shapes["fine"], "64 × 16³")) == ["fine"]
    assert tool.missing({"decoded": "8 × 12³"}, shown) == ["decoded"]
