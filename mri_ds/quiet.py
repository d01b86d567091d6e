"""Whether progress is to be shown. It travels in the environment, so that ranks and workers started from here hear of it too."""

import os

NAME = "MRI_DS_QUIET"


def be_quiet() -> None:
    """From now on, and in every process started from here, no progress is shown."""
    os.environ[NAME] = "1"


def is_quiet() -> bool:
    return os.environ.get(NAME, "") not in ("", "0")
