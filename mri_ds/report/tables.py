"""The report's tables: what was trained on what, every figure with its interval, groups, failures.

In: Gathered.  Out: Tables. Numbers are the evaluation's own; nothing is computed here but counts.
"""

from collections.abc import Iterator
from typing import Any

from mri_ds.evaluation.figures import BY_CLASS, ONE_AGAINST_REST
from mri_ds.evaluation.table import CLASSIFICATION, HEADLINE, REGRESSION
from mri_ds.report.gather import Gathered
from mri_ds.report.table import Column, Table, text

FIGURES = {
    "dice": "Dice",
    "iou": "intersection over union",
    "volume_error": "volume error",
    "hausdorff_mm": "Hausdorff mm",
    "hd95_mm": "HD95 mm",
    "hd95_pooled_mm": "HD95 pooled mm",
    "assd_mm": "mean surface distance mm",
    "surface_dice": "surface Dice",
    "surface_dice_area": "surface Dice by area",
    "lesion_f1": "lesion F1",
    **CLASSIFICATION,
    **REGRESSION,
    "average_precision": "average precision",
}
COUNTS = {"num_scored": "scored", "num_missed": "missed", "num_false_alarm": "false alarms", "num_empty": "empty"}
INTERVAL = "95 % interval"


def settings(g: Gathered) -> Table:
    """The choices that a reader asks for first; the whole of config.yaml stands below it on the page."""
    config = g.config.model_dump(mode="json")
    model, training, data = config["model"], config["training"], config["data"]
    zero = g.speed.get("zero_optimization", {}).get("stage")
    precision = next((name for name in ("bf16", "fp16") if g.speed.get(name, {}).get("enabled") is True), "float32")
    experts = f"{model['num_experts']} x {model['expert_hidden']}, top {model['top_k']}" if model["use_moe"] else "none"
    rows = [
        ("scale", f"{model['scale']}: width {model['embed_dim']}, {model['num_layers']} layers, {model['num_heads']} heads"),
        ("experts", experts),
        ("channels", ", ".join(g.manifest.channels)),
        ("voxels seen", f"patches of {_by(data['patch'])} at {_by(data['spacing_mm'])} mm"),
        ("normalisation", str(data["normalization"])),
        ("steps", f"{training['steps']:,}, {training['global_batch']} subjects each"),
        ("learning rate", f"{training['lr']:g}, weight decay {training['weight_decay']:g}"),
        ("seed", str(training["seed"])),
        ("speed", f"{g.ranks} rank(s), {precision}" + (f", ZeRO-{zero}" if zero is not None else "")),
    ]
    if g.is_cross_validation:
        rows.insert(0, ("cross-validation", f"{len(g.members)} folds, settings of {g.members[0].name}"))
    return Table("settings", "How it was trained", (text("setting"), text("value")), rows)


def data(g: Gathered) -> Table:
    """Subjects and grids, from the manifest that the training kept."""
    manifest = g.manifest
    rows: list[tuple[str, str]] = [
        (f"subjects in {name}", f"{split.num_samples} in {len(split.shards)} shard(s)") for name, split in manifest.splits.items()
    ]
    told = manifest.fingerprint.model_dump(mode="json")
    rows += [
        ("layout", manifest.layout),
        ("median spacing", f"{_by(told['median_spacing_mm'])} mm"),
        ("median shape", f"{_by(told['median_shape'])} voxels"),
        ("left out while sharding", "; ".join(manifest.skipped) or "none"),
    ]
    return Table("data", "What it was trained on", (text("property"), text("value")), rows)


def tasks(g: Gathered) -> Table:
    """Each task, and the training subjects' own statistics of it, which set the constant predictor."""
    rows = []
    for name, task in g.manifest.tasks.items():
        if name not in g.config.tasks:
            continue
        if task.kind == "regression":
            told = f"mean {task.mean:.4g}, standard deviation {task.std:.4g} {task.unit}"
        else:
            shares = task.class_prior or [float("nan")] * len(task.classes)
            told = ", ".join(f"{label} {share:.2%}" for label, share in zip(task.classes, shares))
        rows.append((name, task.kind, told))
    note = "Shares are of voxels for segmentations, of subjects for classifications."
    return Table("tasks", "Tasks", (text("task"), text("kind"), text("in the training subjects")), rows, note)


def of_task(name: str, task: dict[str, Any]) -> Iterator[Table]:
    """The tables of one evaluated task, the main one first."""
    if task["kind"] == "segmentation":
        yield from _segmentation(name, task)
    elif task["kind"] == "classification":
        yield from _classification(name, task)
    else:
        yield _figures(name, task, REGRESSION)


def empty_masks(g: Gathered) -> Table:
    """How often a structure was missed, invented, or rightly not found."""
    rows = [
        (name, label, *(task[key][label] for key in COUNTS))
        for name, task in g.tasks.items()
        if task["kind"] == "segmentation"
        for label in task["dice"]
    ]
    note = "Missed and false alarms count as Dice 0 and as the diagonal of the image; empty in both is not scored."
    return Table("empty", "Empty masks", (text("task"), text("class"), *map(Column, COUNTS.values())), rows, note)


def failures(g: Gathered) -> Table:
    """Every subject and task that went plainly wrong, in the order of the evaluation."""
    rows: list[tuple[Any, ...]] = []
    for subject in g.subjects:
        for name, task in g.tasks.items():
            own = subject.get(name)
            if own is None:
                continue
            if task["kind"] == "segmentation":
                for label, ml in own["truth_ml"].items():
                    found = own["prediction_ml"][label]
                    if (ml > 0) != (found > 0):
                        what = f"missed, {ml:.3g} mL" if ml else f"false alarm, {found:.3g} mL"
                        rows.append((subject["subject_id"], name, label, what))
            elif task["kind"] == "classification" and own["truth"] != own["prediction"]:
                chance = own["probabilities"][own["prediction"]]
                rows.append((subject["subject_id"], name, own["truth"], f"called {own['prediction']} ({chance:.0%} sure)"))
            elif task["kind"] == "regression" and _is_outside(own, task):
                rows.append((subject["subject_id"], name, "", f"{own['prediction']:.4g} for {own['truth']:.4g} {task['unit']}"))
    note = "Structures missed or invented, wrong classes, values outside the limits of agreement."
    return Table("failures", "Failures", (text("subject"), text("task"), text("class"), text("what happened")), rows, note)


def strata(g: Gathered) -> Table:
    """The headline figure of each task in each group."""
    rows = []
    for stratum, levels in ((g.evaluation or {}).get("strata") or {}).items():
        for level, group in levels.items():
            for name, task in group["tasks"].items():
                key, label = HEADLINE[task["kind"]]
                count = task.get("num_scored") if task["kind"] != "segmentation" else task.get("num_subjects")
                found = (task[key], task["interval"][key], task["constant"][key])
                rows.append((f"{stratum.replace('_', ' ')}: {level}", name, label, count, *found))
    columns = (text("group"), text("task"), text("figure"), Column("subjects"), *_value())
    note = "Small groups have wide intervals; one subject has none. A difference between groups is no proof of one."
    return Table("strata", "Groups of subjects", columns, rows, note)


def agreement(g: Gathered) -> Table:
    """The model against each reader, and the readers against one another."""
    rows = []
    for name, pairs in ((g.evaluation or {}).get("agreement") or {}).items():
        for pair in pairs:
            for key, value in pair["figures"].items():
                for label, one in value.items() if isinstance(value, dict) else [("", value)]:
                    ends = pair["interval"][key][label] if label else pair["interval"][key]
                    figure = " ".join(filter(None, (FIGURES.get(key, key), label)))
                    rows.append((f"{pair['a']} and {pair['b']}", name, figure, pair["num_subjects"], one, ends))
    columns = (text("between"), text("task"), text("figure"), Column("subjects"), Column("agreement", 3), Column(INTERVAL, 3))
    return Table("agreement", "Model and readers", columns, rows)


def folds(g: Gathered) -> Table:
    """Each fold's own headline figures; pooled figures over all subjects stand in the tasks' tables."""
    rows: list[tuple[Any, ...]] = []
    for fold in (g.evaluation or {}).get("folds") or []:
        for name, task in fold["tasks"].items():
            if task is not None:
                key, label = HEADLINE[task["kind"]]
                seconds = fold.get("train_s") or None
                rows.append((f"fold {fold['fold']}", name, label, fold["num_subjects"], task[key], seconds))
    columns = (text("fold"), text("task"), text("figure"), Column("subjects"), Column("value", 3), Column("training s", 0))
    return Table("folds", "Folds", columns, rows)


def calibration(g: Gathered) -> Table:
    """What `mri-ds calibrate` fitted; no row where it has not run."""
    rows = []
    for name, task in ((g.calibration or {}).get("tasks") or {}).items():
        nll = task.get("nll") or {}
        width = task.get("half_width")
        rows.append((name, task.get("temperature"), nll.get("before"), nll.get("after"), width, task.get("threshold")))
    columns = [text("task"), Column("temperature", 3), Column("log loss before", 3), Column("after", 3)]
    columns += [Column("half width of intervals", 3), Column("least probability in sets", 3)]
    coverage = (g.calibration or {}).get("coverage", 0.9)
    note = f"Sets and intervals are made to hold the truth in {coverage:.0%} of subjects like those it was fitted on."
    return Table("calibration", "Calibration", columns, rows, note)


# ---- one task ----------------------------------------------------------------------------------------------------------


def _segmentation(name: str, task: dict[str, Any]) -> Iterator[Table]:
    shown = [key for key in ("dice", "hd95_mm") if key in task]
    columns: list[Column] = [text("class")]
    for key in shown:
        digits = 2 if key.endswith("_mm") else 3
        columns += [Column(FIGURES[key], digits), Column(INTERVAL, digits), Column("constant", digits)]
    columns += [Column(COUNTS["num_scored"])]
    rows: list[list[Any]] = []
    for label in task["dice"]:
        row: list[Any] = [label]
        for key in shown:
            row += [task[key][label], _of(task, "interval", key, label), _of(task, "constant", key, label)]
        rows.append([*row, task["num_scored"][label]])
    mean: list[Any] = ["mean of classes"]
    for key in shown:
        at = "dice_mean" if key == "dice" else ""
        value = task["dice_mean"] if at else _of(task, "mean", key)
        ends = _of(task, "interval", "dice_mean") if at else _of(task, "interval", "mean", key)
        mean += [value, ends, _of(task, "constant", "dice_mean") if at else _of(task, "constant", "mean", key)]
    rows.append([*mean, task.get("num_subjects")])
    yield Table(_id(name), f"{name}: segmentation", columns, rows, has_total=True)
    parts = ("interval", "constant", "num_defined")
    more = [
        [label, FIGURES.get(key, key), task[key][label], *(_of(task, part, key, label) for part in parts)]
        for label in task["dice"]
        for key in BY_CLASS
        if key in task and key not in shown
    ]
    if more:
        columns = [text("class"), text("figure"), *_value(), Column("defined for")]
        yield Table(_id(name, "more"), f"{name}: every other figure", columns, more)


def _classification(name: str, task: dict[str, Any]) -> Iterator[Table]:
    yield _figures(name, task, CLASSIFICATION)
    columns = [text("truth"), *(Column(f"called {label}") for label in task["classes"])]
    rows = [[label, *row] for label, row in zip(task["classes"], task["confusion"])]
    yield Table(_id(name, "confusion"), f"{name}: confusion", columns, rows)
    if "by_class" in task:
        more = [
            (
                label,
                FIGURES.get(key, key),
                task["by_class"][label][key],
                _of(task, "interval", "by_class", label, key),
                task["constant_by_class"][label][key],
                task["num"][label],
            )
            for label in task["classes"]
            for key in ONE_AGAINST_REST
        ]
        columns = [text("class"), text("figure"), *_value(), Column("subjects")]
        yield Table(_id(name, "more"), f"{name}: each class against the rest", columns, more)


def _figures(name: str, task: dict[str, Any], figures: dict[str, str]) -> Table:
    rows = [
        [label, task[key], _of(task, "interval", key), _of(task, "constant", key)]
        for key, label in figures.items()
        if key in task
    ]
    unit = f", {task['unit']}" if task.get("unit") else ""
    title = f"{name}: {task['kind']}{unit}, {task['num_scored']} subjects"
    return Table(_id(name), title, (text("figure"), *_value()), rows)


def _value() -> tuple[Column, Column, Column]:
    return Column("run", 3), Column(INTERVAL, 3), Column("constant", 3)


def _of(task: dict[str, Any], *keys: str) -> Any:
    """task[key][...], None where an evaluation of an earlier version has it not."""
    found: Any = task
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_outside(own: dict[str, Any], task: dict[str, Any]) -> bool:
    low, high = task.get("lower"), task.get("upper")
    return low is not None and high is not None and not low <= own["prediction"] - own["truth"] <= high


def _id(task: str, part: str = "") -> str:
    return "-".join(filter(None, ("task", task, part)))


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers) if isinstance(numbers, list) else str(numbers)
