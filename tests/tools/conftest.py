"""The scripts of tools/ import one another by bare name, as they do when run from there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
