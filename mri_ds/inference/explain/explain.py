"""From image files to explanations in files: one subject or many, of which some may fail.

In: a run, inputs as for `predict`.  Out: see subject_maps.py; kan_TASK.json and .png of each head; explain.json, an index.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mri_ds.errors import InputError
from mri_ds.inference.explain.kan_curves import kan_curves
from mri_ds.inference.explain.pictures import draw_curves
from mri_ds.inference.explain.scene import one_network
from mri_ds.inference.explain.subject_maps import Told, Watch, explain_one
from mri_ds.inference.explain.wanted import Wanted, check_wanted
from mri_ds.inference.inputs import find_inputs
from mri_ds.inference.outputs import write_json
from mri_ds.inference.run import Run, Source

INDEX = "explain.json"


@dataclass(frozen=True)
class Explained:
    """`subjects` as explain_one tells them; kan: {task: {"curves", "picture"}} names of files; failed: name -> reason."""

    subjects: list[Told] = field(default_factory=list)
    kan: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    all_bad_input: bool = False  # nothing could be done, and all of it for bad input

    def as_dict(self) -> Told:
        return {name: value for name, value in asdict(self).items() if name != "all_bad_input"}

    def files(self) -> list[str]:
        maps = [one["file"] for told in self.subjects for entry in told["explanations"].values() for one in entry["maps"]]
        return maps + [name for of_task in self.kan.values() for name in of_task.values()]


def explain(
    run: Run,
    inputs: Sequence[Source],
    out: Path,
    wanted: Wanted,
    *,
    series: Sequence[str] = (),
    watch: Watch | None = None,
) -> Explained:
    """Explains every subject at `inputs` into the folder `out`, which is there. What is done already is left as it is.

    Raises InputError for names the run does not know, a run of several networks, and inputs that cannot be listed; what goes
    wrong with one subject does not stop the others.
    """
    check_wanted(run, wanted)
    subjects, left_out = find_inputs(list(inputs), run.channels, series)
    kan = _write_curves(run, out, again=wanted.again) if "kan" in wanted.kinds else {}
    done, failed, num_bad = [], {}, 0
    for files in subjects:
        try:
            done.append(explain_one(run, files, out, wanted, watch or (lambda name: nullcontext(lambda done, total: None))))
        except (InputError, OSError, RuntimeError, MemoryError, ValueError) as err:
            num_bad += isinstance(err, InputError)
            failed[files.subject_id] = str(err) or type(err).__name__
    result = Explained(done, kan, failed, left_out, all_bad_input=bool(subjects) and num_bad == len(subjects))
    write_json(out / INDEX, {"checkpoint": run.digest, **result.as_dict()})
    return result


def _write_curves(run: Run, out: Path, *, again: bool) -> dict[str, dict[str, str]]:
    """The picture first: a task whose JSON is there, of the same weights, is done."""
    written = {}
    for task, layers in kan_curves(run, one_network(run)).items():
        curves, picture = out / f"kan_{task}.json", out / f"kan_{task}.png"
        if again or not picture.is_file() or not _is_of(curves, run):
            draw_curves(picture, layers, f"{task}: learned curves")
            write_json(curves, {"task": task, "checkpoint": run.digest, "layers": [layer.as_dict() for layer in layers]})
        written[task] = {"curves": curves.name, "picture": picture.name}
    return written


def _is_of(path: Path, run: Run) -> bool:
    try:
        return bool(run.digest) and json.loads(path.read_bytes())["checkpoint"] == run.digest
    except (OSError, ValueError, KeyError, TypeError):
        return False
