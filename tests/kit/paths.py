"""Where the tests find the checkout, the golden stores and the reference values."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
ORACLE = ROOT / "tests" / "oracle"
