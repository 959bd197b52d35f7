"""`logitstore capture` and `estimate`: their options are the fields of `CaptureSettings`."""

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitstore.capture.settings import PANELS, CaptureSettings
from logitstore.console.counts import counted
from logitstore.console.entry import stoppable
from logitstore.console.launcher import find_ranks
from logitstore.console.options import (
    JsonOpt,
    OutOpt,
    print_facts,
    settings_from,
    with_options_of,
    words_of,
)
from logitstore.console.settings import about, described
from logitstore.errors import InputError
from logitstore.format.statuses import REASONS
from logitstore.ray.settings import PANEL, RaySettings

if TYPE_CHECKING:
    from logitstore.capture.estimate.sample import Sample

TeacherArg = Annotated[str, typer.Argument(help="The teacher: hub id or model folder.")]
DatasetArg = Annotated[
    list[str],
    typer.Argument(
        help="The dataset: hub id, folder, save_to_disk folder, or .jsonl, .json, .parquet or .txt "
        "files (all but .parquet also .gz or .zst), also as a pattern such as 'data/*.jsonl'."
    ),
]
#: Settings that change how a capture runs and nothing that is estimated.
_NOT_ESTIMATED = tuple(f.name for f in described(CaptureSettings) if not about(f).is_estimated)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(capture)
    app.command()(estimate)


@with_options_of((CaptureSettings, RaySettings), (*PANELS, PANEL), brief=True)
def capture(
    teacher: TeacherArg,
    dataset: DatasetArg,
    out: OutOpt,
    as_json: JsonOpt = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Like estimate, for what the store still lacks. Write nothing."
        ),
    ] = False,
    log_json: Annotated[
        Path | None,
        typer.Option(help="Append events to this file, one JSON object a line.", metavar="FILE"),
    ] = None,
    **values: Any,
) -> None:
    """Run a teacher once over a dataset and write a store. Run it again to resume.

    Under torchrun, accelerate launch or srun every process takes whole shards. With --claim, any
    number of processes that see the folder do. With --ray, one process hands them to teachers on
    a Ray cluster.
    """
    settings = CaptureSettings(**settings_from(CaptureSettings, values))
    on_ray = RaySettings(**settings_from(RaySettings, values))
    on_ray.check(settings, find_ranks())
    settings.check()  # before seconds of imports
    if dry_run:
        if on_ray.address is not None:
            raise InputError(
                f"--dry-run and --ray {on_ray.address}: a preview runs the teacher on this machine "
                "alone. Leave one of the two out."
            )
        _print_preview(teacher, dataset, out, settings, as_json)
        return
    from logitstore.capture.job import run_capture
    from logitstore.info import facts, info_text

    if not find_ranks().is_first:
        _be_quiet()
    with stoppable():
        if on_ray.address is not None:
            from logitstore.ray.job import run_on_ray

            store = run_on_ray(teacher, dataset, out, settings, on_ray, log_json=log_json)
        else:
            store = run_capture(teacher, dataset, out, settings, log_json=log_json)
    if find_ranks().is_first:
        print_facts(facts(store), info_text, as_json)


@with_options_of(CaptureSettings, PANELS, leave_out=_NOT_ESTIMATED, brief=True)
def estimate(
    teacher: TeacherArg, dataset: DatasetArg, as_json: JsonOpt = False, **values: Any
) -> None:
    """Estimate the size and time of a capture, and how many entries this teacher needs.

    Reads a sample of the rows and runs some batches through the teacher; writes nothing. Takes the
    options of capture, recommends a --top-k and a --max-tail, and ends with the command to copy.
    """
    settings = CaptureSettings(**settings_from(CaptureSettings, values))
    _print_preview(teacher, dataset, None, settings, as_json)


def _print_preview(
    teacher: str, dataset: list[str], out: str | None, settings: CaptureSettings, as_json: bool
) -> None:
    """Print what one process would do; the other ranks have nothing to add.

    Without a store to write to, also the command that captures as is recommended.
    """
    settings.check()
    from logitstore.capture.job import run_preview

    if not find_ranks().is_first:
        return
    forecast = run_preview(teacher, dataset, out, settings)
    if out is None:
        _check_worth_a_capture(forecast.sample, dataset)
    facts, text = forecast.facts(), str(forecast)
    if out is None:
        profile = forecast.profile
        advice = None if profile is None else profile.recommended()
        command = _command(teacher, dataset, settings, advice)
        facts |= {"command": command}
        text += f"\n\n{command}"
    typer.echo(json.dumps(facts) if as_json else text)


def _check_worth_a_capture(sample: "Sample", dataset: list[str]) -> None:
    """Reject rows of which none gets a record: a capture would end with that, too.

    Raises:
        InputError: It says why most of them do not.
    """
    if sample.records or not sample.rows:
        return
    status = max(sample.statuses, key=lambda each: sample.statuses[each])
    reason = REASONS.get(status)
    why = status if reason is None else f"{status}: {reason.why}. {reason.step}"
    raise InputError(
        f"{', '.join(dataset)}: none of the {counted(sample.rows, 'row')} looked at has anything "
        f"to capture. Of {sample.statuses[status]:,}, {why}"
    )


def _command(
    teacher: str, dataset: list[str], settings: CaptureSettings, advice: dict[str, Any] | None
) -> str:
    """Write the command line of a capture as it was asked about, with what is recommended."""
    if advice is not None:
        chosen = {name: advice[name] for name in ("top_k", "max_tail", "draws")}
        settings = replace(settings, **chosen)
    words = [teacher, *dataset, "--out", "store", *words_of(settings)]
    return shlex.join(["logitstore", "capture", *words])


def _be_quiet() -> None:
    """Silence this process but for warnings: one of several prints progress."""
    import datasets
    import transformers

    logging.getLogger().setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
