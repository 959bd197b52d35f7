"""Give the documentation what BENCHMARKS.md links beside itself: pages and plots of experiments.

A hook of mkdocs (`mkdocs.yml`): the page `measured.md` is BENCHMARKS.md, whose links are relative.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
#: The files that it links.
LINKED = ("experiment_*.md", "*.svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them as if they lay in the folder of the documentation."""
    for path in sorted(found for pattern in LINKED for found in HERE.glob(pattern)):
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    return files
