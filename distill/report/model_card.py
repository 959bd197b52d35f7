"""The model card of a trained student, from its run object alone: `README.md` of its folder.

Names in it come from stores and datasets, which may be anybody's: each is bounded, and written so
that neither Markdown, HTML, YAML nor a terminal reads it as more than text. The results lie between
two marks, where `distill evaluate` renews them; the rest is for people to edit.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.losses.weights import known_in
from distill.report.curves import CURVES_FILE, series
from distill.report.metrics import METRICS, is_number
from distill.report.results import RunObject
from logitstore.console.terminal import printable
from logitstore.storage import commit
from logitstore.storage.files import read_file

CARD_FILE = "README.md"
_LONGEST_TEXT, _MAX_CARD_BYTES = 120, 1024 * 1024
#: What a run did about labels that no teacher pair covers, by the value of its flag.
_STAND_INS = {
    "hard": "cross-entropy stands in",
    "none": "left out of the loss",
    "scale": "left out of the loss, divided by all labels",
}
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_MARKS = re.compile(r"[\\`*{}\[\]()#+!|~$:@]|(?<![^\W_])_|_(?![^\W_])")
_BEGIN, _END = "<!-- distill: results -->", "<!-- /distill -->"


def write_card(folder: Path, run: RunObject, history: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the card of a finished run into its folder, with the picture of its curves there.

    Args:
        folder: Of the student.
        run: Its run object.
        history: Trainer's `log_history`.
    """
    picture = CURVES_FILE if (folder / CURVES_FILE).exists() else None
    commit.write_whole(folder / CARD_FILE, card(run, history, picture).encode())


def renew_results(folder: Path, run: RunObject) -> None:
    """Bring the results of a card up to date; leave one without its marks alone."""
    path = folder / CARD_FILE
    try:
        text = read_file(path, _MAX_CARD_BYTES).decode()
    except (OSError, ValueError):
        return
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        commit.write_whole(path, f"{before}{_results(run)}{after}".encode())


def card(
    run: RunObject, history: Sequence[Mapping[str, Any]] = (), picture: str | None = None
) -> str:
    """Write the whole card as text: YAML for a hub, then Markdown.

    Args:
        run: The run object.
        history: Trainer's `log_history`, for how the losses fell.
        picture: The file beside the card that shows their curves, if there is one.
    """
    teacher = _teacher(run)
    front: dict[str, Any] = {
        "library_name": "peft" if run.get("lora") else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "logitstore"],
    }
    base = run["base_model"] if "base_model" in run else run.get("model_name_or_path")
    if isinstance(base, str) and _HUB_ID.fullmatch(base):
        front["base_model"] = base  # a hub's id; a path on some machine is nobody else's business
    if datasets := _datasets(run):
        front["datasets"] = datasets
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {_plain(run['name'])}", ""]
    lines += [
        "A student trained from a store of its teacher's probabilities by `distill train`.",
        "",
        *_table(_facts(run, teacher)),
        "",
        _results(run),
        "",
        *_curves(history, picture),
        "## Use",
        "",
        "An ordinary `transformers` folder. To measure it on public tasks:",
        "",
        "```bash",
        f"lm-eval --model hf --model_args {_loading(run)} --tasks hellaswag,arc_easy",
        "```",
        "",
        *_citations(run),
    ]
    return "\n".join(lines) + "\n"


def _datasets(run: RunObject) -> list[str]:
    """List the hub's ids of the stores that it was trained from; none of those in folders."""
    stores = run.get("store")
    named = stores if isinstance(stores, list) else [stores]
    found = (re.match(r"hf://datasets/([\w.-]{1,96}/[\w.-]{1,96})", str(each)) for each in named)
    return sorted({match[1] for match in found if match})


def hub_id(name: str | None) -> str | None:
    """Find the hub's id of a model: what was named, or what a hub's cache has a copy of.

    Returns:
        ``organisation/name``; None for a folder of one's own, whatever its name looks like.
    """
    if not name:
        return None
    copied = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{Path(name).resolve()}/")
    if copied is not None:
        return f"{copied[1]}/{copied[2]}"
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _curves(history: Sequence[Mapping[str, Any]], picture: str | None) -> list[str]:
    """Write how each loss fell, from the first step that was logged to the last."""
    losses = series(history)
    if not losses:
        return []
    lines = ["| | first | last |", "|---|---|---|"]
    for name, points in losses.items():
        first, last = (f"{value:.4g} at step {step:,}" for step, value in (points[0], points[-1]))
        lines.append(f"| {_plain(name)} | {first} | {last if len(points) > 1 else ''} |")
    drawn = [f"![The losses by step]({picture})", ""] if picture else []
    return ["## Curves", "", *drawn, *lines, ""]


def _loading(run: RunObject) -> str:
    if not run.get("lora"):
        return "pretrained=THIS_FOLDER"
    return "pretrained=ITS_BASE_MODEL,peft=THIS_FOLDER"


def _facts(run: RunObject, teacher: Mapping[str, Any]) -> dict[str, Any]:
    metrics = run.get("metrics") or {}
    tail, covered = teacher.get("tail_mean"), metrics.get("covered_fraction")
    facts = {
        "teacher": _place(teacher.get("name")),
        "teacher's revision": teacher.get("revision"),
        "teacher's weights": teacher.get("fingerprint"),
        "dataset": _place(teacher.get("dataset")),
        "store": run.get("store_digest"),
        "top k": teacher.get("top_k"),
        "mass outside the top k": None if tail is None else f"{tail:.2%} on average",
        "student before": _place(run.get("model_name_or_path") or run.get("student_config")),
        "adapters": run.get("lora") and json.dumps(run["lora"]),
        "loss": f"{run.get('ce_weight')} * CE + {run.get('loss')}",
        "labels without a pair": _STAND_INS.get(str(run.get("uncovered"))),
        "covered labels": None if covered is None else f"{covered:.1%}",
        "steps": run.get("steps"),
        "tokens read": metrics.get("train_tokens"),
        "sequences": run.get("sequences"),
        "sequences not used": _counted(run, "by_capture", "by_student"),
        "turns not whole": _counted(run, "turns"),
        "seed": run.get("seed"),
    }
    if run.get("loss") == "ce":
        facts["loss"] = "cross-entropy alone"
    return {name: value for name, value in facts.items() if value is not None}


def _teacher(run: RunObject) -> Mapping[str, Any]:
    """Collect what is known of the teacher; of several, their names and the dataset alone."""
    teacher: Mapping[str, Any] = run.get("teacher") or {}
    stores = run.get("stores")
    if not isinstance(stores, list):
        return teacher
    every = [each.get("teacher") or {} for each in stores if isinstance(each, Mapping)]
    names = dict.fromkeys(str(_place(each.get("name"))) for each in every)
    return {"name": ", ".join(names), "dataset": teacher.get("dataset")}


def _counted(run: RunObject, *parts: str) -> str | None:
    """Say how many were not used or not whole, and why; None where all were, or it is not known."""
    usable = run.get("usable") or {}
    left_out = [each for part in parts for each in usable.get(part, ())]
    said = ", ".join(f"{each['count']:,} {each['reason']}" for each in left_out)
    return said or None


def _results(run: RunObject) -> str:
    """Write the table of results, between its marks."""
    found: dict[str, Any] = {
        m.label: m.shown(run[m.name]) for m in METRICS if is_number(run.get(m.name))
    }
    for part, label in (("evaluation", "measured on"), ("judged", "judged by")):
        facts = run.get(part)
        if isinstance(facts, Mapping) and facts:
            found[label] = _place(facts.get("data") or facts.get("store"))
    return "\n".join([_BEGIN, "## Results", "", *_table(found), _END])


def _citations(run: RunObject) -> list[str]:
    papers = [loss.cited for loss in known_in(str(run["loss"]))]
    links = [
        f"* {paper.title}, [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
        for paper in papers
        if paper is not None
    ]
    return ["## Cite", "", *links] if links else []


def _table(facts: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_plain(v)} |" for name, v in facts.items())]


def _place(name: Any) -> Any:
    """Shorten a path to its last part, as the rest is of one machine alone; keep a hub id."""
    is_path = isinstance(name, str) and (name[:1] in ("/", "~", ".") or name.count("/") > 1)
    return Path(name).name if is_path else name


def _plain(value: object) -> str:
    """Escape text so that nothing reads it as more: bounded, one line, every mark an entity.

    An underscore between letters is no mark, and names are full of them.
    """
    text = printable(str(value))
    if len(text) > _LONGEST_TEXT:
        text = text[: _LONGEST_TEXT - 1] + "…"
    escaped = html.escape(text)
    escaped = re.sub("(?i)www[.]", "www&period;", escaped)  # which would become a link
    return _MARKS.sub(lambda found: f"&#{ord(found[0])};", escaped)
