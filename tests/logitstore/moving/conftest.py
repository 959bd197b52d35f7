"""A teacher that other tools have asked, made once for all tests of imports."""

from tests.kit.dumper import teacher

__all__ = ["teacher"]  # a fixture
