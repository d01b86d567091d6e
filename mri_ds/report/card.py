"""A model card: what the run itself tells, and for everything else who must say it.

In: Gathered, the numbers of its cost, and the answers of people.  Out: {"title", "statement", "sections": [{"title", "items": [
{"id", "question", "answer" or None, "by"}]}]}, as JSON and as Markdown.
`RUN/card_answers.yaml`, {id: text}, fills the items that people must fill; nothing here claims an approval.
Sources: Mitchell et al. 2019 (model cards); FDA, Health Canada and MHRA 2021 (ten principles of good machine learning practice),
2023 (predetermined change control plans), 2024 (transparency); regulations (EU) 2017/745 (MDR) and 2024/1689 (AI Act).
"""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from mri_ds import __version__
from mri_ds.errors import InputError
from mri_ds.evaluation.table import HEADLINE
from mri_ds.report.gather import Gathered

ANSWERS = "card_answers.yaml"
STATEMENT = (
    "Research software. Neither this model nor mri_ds is a medical device, and neither is approved, cleared, certified or "
    "CE-marked by anybody. What is gathered here may be asked for; it is no submission and no evidence of conformity."
)
MAKER, CLINICAL, QUALITY, OWNER = "the manufacturer", "the clinical lead", "quality management", "the data's owner"

Item = dict[str, Any]
Card = dict[str, Any]


def model_card(g: Gathered, cost: dict[str, Any], answers: dict[str, str] | None = None) -> Card:
    """The card. answers: by item, of people; they go before what the run tells. Raises InputError for an unknown item."""
    sections: list[dict[str, Any]] = [
        {"title": "Model", "items": _model(g, cost)},
        {"title": "Intended use", "items": _use(g)},
        {"title": "Data", "items": _data(g)},
        {"title": "Evaluation", "items": _evaluation(g)},
        {"title": "Limits", "items": _limits(g)},
        {"title": "United States: what FDA asks of machine learning in devices", "items": _fda(g)},
        {"title": "European Union: what MDR and the AI Act ask", "items": _eu(g)},
    ]
    items = {item["id"]: item for section in sections for item in section["items"]}
    for name, answer in (answers or {}).items():
        if name not in items:
            raise InputError(f"no item {name!r} in the card", where=ANSWERS, fix=f"use one of {', '.join(items)}")
        items[name]["answer"] = str(answer)
    return {"title": f"Model card of {g.run.name}", "statement": STATEMENT, "mri_ds": __version__, "sections": sections}


def read_answers(run: Path) -> dict[str, str]:
    path = run / ANSWERS
    if not path.is_file():
        return {}
    try:
        told = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise InputError(f"is not YAML: {err}", where=path, fix="correct the syntax") from None
    if not isinstance(told, dict):
        raise InputError("is no mapping", where=path, fix="write `item: answer`, a line each")
    return {str(key): str(value) for key, value in told.items()}


def write_card(card: Card, folder: Path) -> dict[str, str]:
    """{"card": model_card.md, "card_json": model_card.json} in `folder`, whole or not at all."""
    contents = {"card": ("model_card.md", markdown(card)), "card_json": ("model_card.json", json.dumps(card, indent=1) + "\n")}
    written = {}
    for what, (name, content) in contents.items():
        partial = folder / f".{os.getpid()}.{name}"
        partial.write_text(content)
        os.replace(partial, folder / name)
        written[what] = str(folder / name)
    return written


def markdown(card: Card) -> str:
    lines = [f"# {_plain(card['title'])}", "", f"**{card['statement']}**", ""]
    lines += [
        f"Made by `mri-ds report` {card['mri_ds']}; people's answers come from `{ANSWERS}` beside this file, by the item's name.",
        "",
    ]
    for section in card["sections"]:
        lines += [f"## {section['title']}", ""]
        for item in section["items"]:
            answer = _plain(item["answer"]) if item["answer"] is not None else to_fill(item)
            lines.append(f"- **{item['question']}** (`{item['id']}`): {answer}")
        lines.append("")
    return "\n".join(lines)


def to_fill(item: Item) -> str:
    return f"to be filled by {item['by']}"


def open_items(card: Card) -> int:
    """How many items nobody has answered."""
    return sum(item["answer"] is None for section in card["sections"] for item in section["items"])


# ---- sections ----------------------------------------------------------------------------------------------------------


def _item(id: str, question: str, answer: str | None = None, *, by: str = MAKER) -> Item:
    return {"id": id, "question": question, "answer": answer, "by": by}


def _model(g: Gathered, cost: dict[str, Any]) -> list[Item]:
    tasks = ", ".join(f"{name} ({task.kind})" for name, task in g.config.tasks.items())
    size = f"{cost['parameters_total']:,} parameters, {cost['parameters_active']:,} active per token"
    trained = f"{g.config.training.steps} steps, seed {g.config.training.seed}"
    many = f", {len(g.members)} folds" if g.is_cross_validation else ""
    return [
        _item("name", "Name and version", f"{g.run.name}, made with mri_ds {__version__}"),
        _item("owner", "Who is responsible, and how to reach them"),
        _item("kind", "What it is", f"a multi-task transformer for 3-D MRI; tasks: {tasks}"),
        _item("size", "Size", size),
        _item("training", "Training", f"{trained}{many}"),
        _item("date", "Card made on", date.today().isoformat()),
    ]


def _use(g: Gathered) -> list[Item]:
    channels = ", ".join(g.manifest.channels)
    spacing = " x ".join(f"{mm:.3g}" for mm in g.manifest.fingerprint.median_spacing_mm)
    return [
        _item("intended_use", "Intended use, indications, and the decision it takes part in", by=CLINICAL),
        _item("users", "Intended users and their training", by=CLINICAL),
        _item("patients", "Intended patients: age, sex, condition, exclusions", by=CLINICAL),
        _item("inputs", "Inputs", f"3-D MRI of the channels {channels}, in this order; median spacing in training {spacing} mm"),
        _item("outputs", "Outputs", "; ".join(_output(name, task) for name, task in g.config.tasks.items())),
        _item("not_for", "Not for", "diagnosis or treatment unless a qualified person reviews it; other channels, regions or "
              "populations than those of the training data"),
        _item("workflow", "Place in the clinical workflow, and what happens when it is unavailable", by=CLINICAL),
    ]  # fmt: skip


def _output(name: str, task: Any) -> str:
    if task.kind == "regression":
        return f"{name}: a value{f' in {task.unit}' if task.unit else ''}"
    what = "a label map of" if task.kind == "segmentation" else "probabilities of"
    return f"{name}: {what} {', '.join(task.classes)}"


def _data(g: Gathered) -> list[Item]:
    counts = ", ".join(f"{split.num_samples} in {name}" for name, split in g.manifest.splits.items())
    digest = next((d[:12] for split in g.manifest.splits.values() for d in split.sha256.values()), None)
    left_out = "; ".join(g.manifest.skipped) or "none"
    groups = (g.evaluation or {}).get("strata") or {}
    known = "; ".join(
        f"{stratum}: " + ", ".join(f"{level} {group['num_subjects']}" for level, group in levels.items())
        for stratum, levels in groups.items()
    )
    return [
        _item("subjects", "Subjects", counts or None),
        _item("splits", "Independence of training and test", "all scans of a patient are in one split, and statistics are of "
              "training subjects alone, as far as the data say whose a scan is"),
        _item("left_out", "Left out while sharding", left_out),
        _item("fingerprint", "Identity of the data", digest and f"SHA-256 of each shard in manifest.json; the first: {digest}",
              by=OWNER),
        _item("source", "Origin, period, sites, scanners, protocol", by=OWNER),
        _item("reference", "How the reference standard was made, by whom, and their agreement", by=OWNER),
        _item("groups", "Groups among the evaluated subjects", known or None, by=OWNER),
        _item("consent", "Consent, ethics approval, licence, privacy", by=OWNER),
    ]  # fmt: skip


def _evaluation(g: Gathered) -> list[Item]:
    if g.evaluation is None:
        return [_item("evaluation", "Evaluation", None, by="mri-ds evaluate")]
    told = []
    for name, task in g.tasks.items():
        key, label = HEADLINE[task["kind"]]
        ends = (task.get("interval") or {}).get(key) or [None, None]
        interval = f" (95 %: {ends[0]:.3f} to {ends[1]:.3f})" if None not in ends else ""
        value = "not defined" if task[key] is None else f"{task[key]:.3f}"
        beside = task["constant"].get(key)
        told.append(f"{name}: {label} {value}{interval}" + ("" if beside is None else f", constant predictor {beside:.3f}"))
    how = "out of fold, by cross-validation" if g.is_cross_validation else f"split {g.evaluation.get('split', 'test')}"
    return [
        _item("figures", "Figures", "; ".join(told)),
        _item("tested_on", "Tested on", f"{g.evaluation['num_subjects']} subjects, {how}; the same source as the training data"),
        _item("external", "Tested on data of other sites, gathered independently", by=CLINICAL),
        _item("readers", "Beside human readers", _readers(g), by=CLINICAL),
        _item("acceptance", "Acceptance criteria, set before the evaluation", by=CLINICAL),
        _item("uncertainty", "Uncertainty", _uncertainty(g), by="mri-ds calibrate"),
    ]


def _readers(g: Gathered) -> str | None:
    found = (g.evaluation or {}).get("agreement") or {}
    pairs = [f"{pair['a']} and {pair['b']} ({name})" for name, pairs in found.items() for pair in pairs]
    return f"compared: {', '.join(pairs)}; figures in the report" if pairs else None


def _uncertainty(g: Gathered) -> str | None:
    if g.calibration is None:
        return None
    coverage, subjects = g.calibration.get("coverage", 0.9), g.calibration.get("subjects", [])
    return f"calibrated on {len(subjects)} subjects: sets and intervals aim to hold the truth in {coverage:.0%}"


def _limits(g: Gathered) -> list[Item]:
    told = [f"{g.evaluation['num_subjects']} subjects were evaluated" if g.evaluation else "it has not been evaluated"]
    for name, task in g.tasks.items():
        if task["kind"] == "segmentation":
            for what, key in (("missed", "num_missed"), ("invented", "num_false_alarm")):
                found = [f"{label} in {count}" for label, count in task[key].items() if count]
                if found:
                    told.append(f"{name}: structures {what}: {', '.join(found)}")
    rare = [
        f"{label} ({name}) in {share:.0%} of the training subjects"
        for name, task in g.config.tasks.items()
        for label, share in zip(task.classes, task.class_presence)
        if share < 0.5
    ]
    if rare:
        told.append("rare: " + ", ".join(rare))
    return [
        _item("known", "Known from the run", "; ".join(told)),
        _item(
            "shift", "Other scanners, protocols, field strengths, pathology", "nothing is known beyond the data described above"
        ),
        _item("bias", "Differences between groups of people, and what is done about them", by=CLINICAL),
        _item("failure", "What a wrong result can lead to, and how it is noticed", by=CLINICAL),
    ]


def _fda(g: Gathered) -> list[Item]:
    seed = f"config.yaml, ds_config.json and manifest.json fix the training; seed {g.config.training.seed}"
    apart = "the test split is apart from training by patient; steps and settings may still have been chosen while watching it"
    shown = "figures stand beside a constant predictor's and with 95 % intervals; failures and empty masks are counted"
    return [
        _item("gmlp_1", "GMLP 1: multi-disciplinary expertise over the whole life cycle", by=QUALITY),
        _item("gmlp_2", "GMLP 2: good software engineering and security practice",
              "mri_ds is tested and typed; the product around it must be too", by=QUALITY),
        _item("gmlp_3", "GMLP 3: participants and data represent the intended patients", by=CLINICAL),
        _item("gmlp_4", "GMLP 4: training data independent of test data", apart),
        _item("gmlp_5", "GMLP 5: reference standards from the best available methods", by=OWNER),
        _item("gmlp_6", "GMLP 6: design suits the data and the intended use", by=CLINICAL),
        _item("gmlp_7", "GMLP 7: performance of the human and the model together", by=CLINICAL),
        _item("gmlp_8", "GMLP 8: performance under clinically relevant conditions", by=CLINICAL),
        _item("gmlp_9", "GMLP 9: clear, essential information for users", shown),
        _item("gmlp_10", "GMLP 10: deployed models are monitored, retraining is managed", by=QUALITY),
        _item("reproducible", "What was trained can be made again", seed),
        _item("transparency", "Transparency: who needs what information, when, and in what form", by=MAKER),
        _item("pccp_changes", "PCCP: modifications that are planned", by=MAKER),
        _item("pccp_protocol", "PCCP: how each is developed, verified, validated and put in place", by=QUALITY),
        _item("pccp_impact", "PCCP: benefits, risks and their mitigation", by=QUALITY),
        _item("pathway", "Regulatory pathway, predicate, classification", by=MAKER),
        _item("cybersecurity", "Cybersecurity of the device: threat model, software bill of materials", by=QUALITY),
    ]  # fmt: skip


def _eu(g: Gathered) -> list[Item]:
    logs = "metrics.jsonl of the training; each prediction's JSON names weights and settings; logs of use are the product's"
    return [
        _item("mdr_class", "MDR Annex VIII, rule 11: class and its reasoning", by=MAKER),
        _item("mdr_gspr", "MDR Annex I: general safety and performance requirements", by=QUALITY),
        _item("mdr_clinical", "MDR Article 61, Annex XIV: clinical evaluation", by=CLINICAL),
        _item("mdr_pms", "MDR Articles 83 to 86: post-market surveillance", by=QUALITY),
        _item("ai_class", "AI Act Article 6: high risk where the device needs a notified body", by=MAKER),
        _item("ai_risk", "AI Act Article 9: risk management (with ISO 14971)", by=QUALITY),
        _item("ai_data", "AI Act Article 10: governance of data, examination for bias", by=OWNER),
        _item("ai_documents", "AI Act Article 11, Annex IV: technical documentation",
              "this card and the report are material for it, not the documentation itself", by=QUALITY),
        _item("ai_records", "AI Act Article 12: records", logs),
        _item("ai_transparency", "AI Act Article 13: instructions for use", by=MAKER),
        _item("ai_oversight", "AI Act Article 14: human oversight", by=CLINICAL),
        _item("ai_accuracy", "AI Act Article 15: accuracy, robustness, cybersecurity",
              "accuracy: see Evaluation; robustness and cybersecurity are open" if g.evaluation else None, by=QUALITY),
        _item("ai_quality", "AI Act Article 17: quality management (with ISO 13485, IEC 62304)", by=QUALITY),
        _item("ai_monitoring", "AI Act Article 72: monitoring after placing on the market", by=QUALITY),
    ]  # fmt: skip


def _plain(text: str) -> str:
    """One line of Markdown in which names from data are letters, not markup."""
    told = " ".join(str(text).split())
    return told.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
