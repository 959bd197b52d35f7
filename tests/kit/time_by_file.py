"""Print what each test file costs at the end of a run: `--durations` names single tests only.

The cost is processor time, of the test process and of those that it waited for: about the same on a
busy machine. The wall-clock is beside it. Fixtures count; importing the file does not.
"""

import resource
from collections import defaultdict
from collections.abc import Generator, Iterator

import pytest

SHOWN = 20


def _processor_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


class _Clock:
    """Processor time since the last reading."""

    last_s = _processor_s()

    def lap_s(self) -> float:
        before, self.last_s = self.last_s, _processor_s()
        return self.last_s - before


_CLOCK = _Clock()


def pytest_runtest_logstart() -> None:
    """Leave out what passed between two tests."""
    _CLOCK.lap_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on every report (set-up, test, clean-up) what it cost; xdist hands it on."""
    report = yield
    report.processor_s = _CLOCK.lap_s()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the dearest files."""
    processor_s: dict[str, float] = defaultdict(float)
    wall_s: dict[str, float] = defaultdict(float)
    tests: dict[str, set[str]] = defaultdict(set)
    for report in _reports(terminalreporter):
        file = report.nodeid.split("::")[0]
        processor_s[file] += getattr(report, "processor_s", 0)
        wall_s[file] += report.duration
        tests[file].add(report.nodeid)
    dearest = sorted(processor_s, key=lambda file: -processor_s[file])[:SHOWN]
    terminalreporter.write_sep("=", "time by file")
    count = sum(map(len, tests.values()))
    terminalreporter.write_line(
        _line(sum(processor_s.values()), sum(wall_s.values()), count, "all")
    )
    for file in dearest:
        terminalreporter.write_line(_line(processor_s[file], wall_s[file], len(tests[file]), file))


def _reports(terminalreporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    for reports in terminalreporter.stats.values():
        yield from (report for report in reports if isinstance(report, pytest.TestReport))


def _line(processor_s: float, wall_s: float, tests: int, name: str) -> str:
    return f"{processor_s:8.1f} s of processor {wall_s:8.1f} s {tests:5} tests  {name}"
