"""The results of all stages as one Markdown page: tables, and goals beside what was measured."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.benchmark import is_goal, said
from tools.gpu.reports import is_whole


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the page of the stages that have a report, in the order given."""
    lines = ["# On a CUDA device", ""]
    is_cpu = any(report["device"]["name"] == "cpu" for report in found.values())
    if found:
        about = next(iter(found.values()))
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v)
        lines += [f"{about['device']['name']}, {about['date']}: {versions}.", ""]
    lines.append(
        "`bash tools/gpu/run.sh` makes this page; `MISSED` stands by a goal that was not met."
    )
    if is_cpu:
        lines += [
            "",
            "Tiny sizes on a CPU: they show that it runs and measure nothing, so no goals.",
        ]
    for name, report in found.items():
        results = report["results"] | ({"goals": {}} if is_cpu else {})
        lines += ["", f"## {name}", ""]
        if not is_whole(report):
            lines += ["Cut off at its time limit; run again, it goes on where it was.", ""]
        lines += _WRITERS[name](results)
    return "\n".join(lines) + "\n"


def checks(results: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{results['passed']} passed, {len(results['failed'])} failed, "
        f"{len(results['skipped'])} skipped."
    )
    for kind in ("failed", "skipped"):
        for name, why in results[kind].items():
            yield f"\n* {kind}: `{name}`: {why}"


def contenders(results: Mapping[str, Any]) -> Iterator[str]:
    """Tabulate seconds and memory of each, then the goals."""
    yield "| | ms | peak MiB |"
    yield "|---|--:|--:|"
    for name, took in results["contenders"].items():
        memory = f"{took['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in took else ""
        yield f"| {name} | {took['seconds'] * 1000:,.1f} | {memory} |"
    yield ""
    yield from goals(results.get("goals", {}))


def goals(named: Mapping[str, Any], of: str = "") -> Iterator[str]:
    for name, value in named.items():
        if is_goal(value):
            at = "at least" if "faster" in name else "at most"
            yield f"* {of}{name}: {said(value, at)}"
        else:
            yield from goals(value, f"{name}: ")


def capture(results: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{results['tokens']:,} tokens in batches of {results['tokens_per_batch']:,}, "
        f"V = {results['vocabulary']:,}, K = {results['entries']}."
    )
    yield ""
    yield from contenders(results)
    stages = results["contenders"]["ours"]
    names = ("device", "host transfer", "encoding", "committing", "verifying")
    yield ""
    yield "Stages of ours, on several threads: " + ", ".join(
        f"{name} {stages.get(name, 0.0):.2f} s" for name in names
    )
    yield ""
    yield "| operations of four batches | calls | ms | share |"
    yield "|---|--:|--:|--:|"
    for row in results.get("profile", ()):
        name = row["operation"].replace("|", "\\|")
        yield f"| `{name}` | {row['calls']} | {row['milliseconds']:.2f} | {row['share']:.1%} |"


def losses(results: Mapping[str, Any]) -> Iterator[str]:
    sizes = results["sizes"]
    yield f"N = {sizes['N']:,}, D = {sizes['D']:,}, V = {sizes['V']:,}."
    yield ""
    yield from contenders(results)


def real(results: Mapping[str, Any]) -> Iterator[str]:
    if "left_out" in results:
        yield f"Left out: {results['left_out']}"
        return
    yield f"{results['jobs']} students were trained in the last run, {results['left']} are left."
    yield ""
    yield results["tables"].replace("\n### ", "\n#### ")


_WRITERS = {
    "checks": checks,
    "capture": capture,
    "losses": losses,
    "steps": contenders,
    "real": real,
}
