"""The 3-D viewer in the page: NiiVue (BSD-2-Clause), taken from the ipyniivue package, whose Jupyter parts are not used.

In: the installed package.  Out: what the page carries: NiiVue's module, compressed, and our script that starts it.
Nothing is fetched when the page is looked at; the page's policy forbids it.
"""

import base64
import gzip
import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGE = "ipyniivue"
PIP = "pip install --no-deps 'ipyniivue>=2.4,<2.5'"  # its Jupyter dependencies are not needed here
MODULE = "static/widget.js"
# the widget makes its one viewer by `instance = new Class(options)` behind this notice; the class is all we want of it
MADE = re.compile(r'"Creating new Niivue instance".{0,300}?=\s*new ([\w$]+)\(', re.DOTALL)
SCRIPT = (Path(__file__).parent / "viewer.js").read_text()
LICENCE = "NiiVue, copyright Chris Rorden and contributors, BSD 2-Clause licence; from the package ipyniivue {version}."


@dataclass(frozen=True)
class NiiVue:
    """module: a JavaScript module that leaves its class as globalThis.Niivue, compressed by gzip, as base64."""

    module: str
    licence: str


def find_niivue() -> NiiVue | str:
    """NiiVue, or in words why there is none and what to do."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return f"The 3-D viewer needs NiiVue: {PIP}"
    path = Path(spec.submodule_search_locations[0]) / MODULE
    source = path.read_text() if path.is_file() else ""
    made = MADE.search(source)
    version = metadata.version(PACKAGE)
    if made is None:
        return f"{PACKAGE} {version} holds no NiiVue that is understood here: {PIP}"
    module = f"{source}\n;globalThis.Niivue={made[1]};"
    compressed = base64.b64encode(gzip.compress(module.encode(), mtime=0)).decode()
    return NiiVue(compressed, LICENCE.format(version=version))
