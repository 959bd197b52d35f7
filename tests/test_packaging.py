"""What is published is whole: built without the checkout's leftovers, installed and run outside it.

No network: the packages it depends on are those of the environment that runs the tests, put behind
the fresh environment's own by a `.pth` file (which does not read theirs, so no editable install of
this checkout comes along).
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.losses import all_losses
from logitstore.testing import tiny
from tests.kit.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What a user's own tests would do with the installed package, outside the checkout.
INPUTS = """
from pathlib import Path
from logitstore import open_store
from logitstore.testing import buckets, fake_store, fixtures, stores, tiny
stores.write("written")
assert len(open_store("written")) == 12
for name, tokenizer in (("teacher", tiny.byte_bpe()), ("student", tiny.unigram())):
    tiny.save(Path(name), tiny.llama(len(tokenizer)), tokenizer)
"""


def test_the_papers_that_a_card_cites_are_in_the_citation_file() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the schema asks for
    assert (cited["title"], cited["version"]) == (PROJECT["name"], PROJECT["version"])
    assert (cited["license"], cited["abstract"]) == (PROJECT["license"], PROJECT["description"])
    papers = {each["url"].rsplit("/", 1)[1]: each["title"] for each in cited["references"]}
    for loss in all_losses().values():
        if loss.cited is not None:
            assert papers[loss.cited.arxiv] == loss.cited.title
    for each in cited["references"]:
        assert each["authors"]
        assert each["journal"].endswith(each["url"].rsplit("/", 1)[1])


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(source: Path, kind: str, out: Path) -> Path:
    """A wheel or an sdist, by the build backend alone."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", code, out, cwd=source)
    return next(out.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, which was built from a copy of the checkout; both are looked at."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    direct = built(copy, "wheel", folder / "direct")
    sdist = built(copy, "sdist", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"):
        assert (unpacked / name).exists()
    assert not (unpacked / "tests").exists()
    wheel = built(unpacked, "wheel", folder / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert names == zipfile.ZipFile(direct).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"logitstore", "distill"}
    return wheel


def test_an_editable_install_is_found_in_the_folder_above_a_clone(tmp_path: Path) -> None:
    """There `logitstore` is also a folder without `__init__.py`: a package of its own to Python."""
    clone, site = tmp_path / "logitstore", tmp_path / "site"
    shutil.copytree(ROOT / "logitstore", clone / "logitstore")
    shutil.copytree(ROOT / "distill", clone / "distill")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, clone)
    wheel = built(clone, "editable", tmp_path / "built")
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import site; site.addsitedir({str(site)!r})\n"
    code += "import logitstore; print(logitstore.__file__)"
    # -S: of the packages here, none is found but by that folder.
    found = run(sys.executable, "-S", "-c", code, cwd=tmp_path).strip()
    assert found == str(clone / "logitstore" / "__init__.py")


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_its_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = [
        path.relative_to(ROOT).as_posix()
        for package in ("logitstore", "distill")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert len(ours) > 100
    assert [name for name in ours if name not in held] == []
    named = {"logitstore/py.typed", "logitstore/testing/stores.py", "distill/report/page.css"}
    assert named <= held


@pytest.mark.slow
def test_installed_outside_the_checkout_it_does_the_whole_job(wheel: Path, tmp_path: Path) -> None:
    fresh, here = tmp_path / "venv", tmp_path / "here"
    here.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=here)
    python = fresh / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=here)
    [site] = (fresh / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def logitstore(*arguments: object) -> str:
        return run(fresh / "bin" / "logitstore", *arguments, cwd=here)

    def distill(*arguments: object) -> str:
        return run(fresh / "bin" / "distill", *arguments, cwd=here)

    where = "import logitstore, distill; print(logitstore.__file__, distill.__file__)"
    assert run(python, "-c", where, cwd=here).split() == [
        str(site / name / "__init__.py") for name in ("logitstore", "distill")
    ]
    assert "capture" in logitstore("--help")
    assert "train" in distill("--help")
    run(python, "-c", INPUTS, cwd=here)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny.corpus()[:12])
    (here / "train.jsonl").write_text(rows)
    logitstore("capture", "teacher", "train.jsonl", "--out", "store", "--top-k", 8)
    facts: dict[str, Any] = json.loads(logitstore("info", "store", "--json"))
    assert (facts["complete"], facts["rows"]) == (True, 12)
    assert "whole" in logitstore("verify", "store", "--deep")
    logitstore("report", "store", "-o", "store.html")
    given = ("--model_name_or_path", "student", "--store", "store", "--loss", "mapped_kl")
    distill("train", *given, "--output_dir", "trained", "--max_steps", 2, "--use_cpu")
    distill("evaluate", "trained", "train.jsonl", "--samples", 1)
    distill("compare", "trained", "-o", "students.html")
    assert (here / "store.html").stat().st_size > 10_000
    assert (here / "students.html").stat().st_size > 10_000
