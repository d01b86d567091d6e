"""The demo's own files in a run folder: what it was started with, and the seconds of each stage, so that it can go on.

RUN/demo_seconds.json {"started_with": {...}, "seconds": {stage: s}} is kept up to date; RUN/summary.json means complete.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGES = ("setup", "data", "train", "evaluate")


class Failed(Exception):
    """A stage failed, or the demo cannot start: what to tell, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Clock:
    """Seconds of each stage, earlier parts of an interrupted run included."""

    def __init__(self, run: Path, started_with: Mapping[str, Any]) -> None:
        self._path, self._started_with = run / "demo_seconds.json", started_with
        self.seconds = {**dict.fromkeys(STAGES, 0.0), **read_json(self._path).get("seconds", {})}
        self._stage, self._before, self._began = "", 0.0, 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage, self._before, self._began = name, self.seconds[name], time.monotonic()
        try:
            yield
        finally:
            self.tick()
            self._stage = ""

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds
        self._save()

    def tick(self) -> None:
        """Called now and then: a demo that is killed outright loses no more than what passed since."""
        if self._stage:
            self.seconds[self._stage] = self._before + time.monotonic() - self._began
            self._save()

    def _save(self) -> None:
        write_json(self._path, {"started_with": self._started_with, "seconds": self.seconds})


def prepare(run: Path, started_with: Mapping[str, Any]) -> str:
    """Keeps the folder of a run to go on with, clears that of a complete or a different one; says which.

    Raises Failed for a folder that the demo did not make: it clears nobody else's.
    """
    before = read_json(run / "demo_seconds.json").get("started_with")
    is_empty = not run.exists() or not any(run.iterdir())
    is_complete = (run / "summary.json").exists()
    can_go_on = (run / "checkpoints").is_dir() and not is_complete
    if before is None and not is_empty and not can_go_on:
        raise Failed(f"{run} is not a run folder of this demo; choose another with --run", exit_code=2)
    if is_complete or before not in (None, started_with):
        shutil.rmtree(run)
        run.mkdir()
        return f"the run in {run} {'is complete' if is_complete else 'was started with other data or settings'}: starting afresh"
    run.mkdir(parents=True, exist_ok=True)
    return f"going on with the run in {run}" if can_go_on else f"new run in {run}"


def read_json(path: Path) -> dict[str, Any]:
    """What stands in the file; nothing when it is absent or was cut short by a kill."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(beside, path)
