"""Build the wheel, and try it in a bare environment of every Python that is on this machine.

    python -m tools.wheels [--python PATH …] [--json]

Each environment gets the wheel and what it needs, nothing of this checkout: the package is imported
there, a stored golden store is described and verified, and both programs print their help. Without
`--python`, Pythons 3.11 to 3.14 are looked for on PATH and among pyenv's. It takes a minute for
each, and needs a package index.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MINORS = (11, 12, 13, 14)
STORE = ROOT / "tests/golden/v1-plain"
#: What must work in a bare environment, by a name for the table.
CHECKS: dict[str, tuple[str, ...]] = {
    "import": ("python", "-c", "import logitstore, distill; logitstore.open_store"),
    "read": (
        "python",
        "-c",
        f"import logitstore; logitstore.open_store({str(STORE)!r})[0].padded()",
    ),
    "info": ("logitstore", "info", str(STORE)),
    "verify": ("logitstore", "verify", str(STORE), "--deep"),
    "logitstore --help": ("logitstore", "--help"),
    "distill --help": ("distill", "--help"),
}


def interpreters(folders: Iterable[Path]) -> dict[str, Path]:
    """Find one Python of every minor version that is supported, by version."""
    found: dict[str, Path] = {}
    for minor in MINORS:
        name = f"python3.{minor}"
        for folder in folders:
            path = folder / name
            if path.is_file() and f"3.{minor}" not in found:
                found[f"3.{minor}"] = path
    return found


def places() -> list[Path]:
    """List the folders where interpreters are looked for: PATH, then pyenv's versions."""
    on_path = [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep) if each]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    shims = pyenv / "shims"  # which start only what `pyenv global` names
    return [p for p in on_path if p != shims] + sorted(pyenv.glob("versions/*/bin"), reverse=True)


def build(folder: Path) -> Path:
    """Build the wheel from a copy of what git tracks, and return its path."""
    source = folder / "source"
    listed = _run(["git", "ls-files", "-z"], cwd=ROOT).split("\0")
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    _run([*pip, str(source)])
    return next(folder.glob("*.whl"))


def tried(wheel: Path, python: Path, folder: Path) -> dict[str, Any]:
    """Install the wheel into a new environment of a Python, and run every check there."""
    _run([str(python), "-m", "venv", str(folder)])
    scripts = folder / "bin"
    began = time.perf_counter()
    _run([str(scripts / "python"), "-m", "pip", "install", "--quiet", str(wheel)])
    found: dict[str, Any] = {"install_s": round(time.perf_counter() - began, 1)}
    for name, (program, *words) in CHECKS.items():
        began = time.perf_counter()
        # Elsewhere, so that the checkout is not what is imported.
        _run([str(scripts / program), *words], cwd=folder)
        found[name] = round(time.perf_counter() - began, 2)
    return found


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command[:6])}: {' '.join(last)}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Try the wheel with every Python of this machine.")
    parser.add_argument("--python", action="append", type=Path, default=[], metavar="PATH")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    chosen = {str(path): path for path in asked.python} or interpreters(places())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        for version, python in chosen.items():
            try:
                results[version] = tried(wheel, python, folder / f"env-{len(results)}")
            except RuntimeError as error:
                results[version] = {"error": str(error)}
    missing = [v for v in (f"3.{m}" for m in MINORS) if not asked.python and v not in chosen]
    if asked.json:
        print(json.dumps({"wheel": wheel.name, "pythons": results, "not_here": missing}, indent=1))
    else:
        print(wheel.name)
        for version, found in results.items():
            print(f"{version:<6}", ", ".join(f"{k} {v}" for k, v in found.items()))
        print("not on this machine:", ", ".join(missing) or "none")
    sys.exit(any("error" in found for found in results.values()) or not results)


if __name__ == "__main__":
    main()
