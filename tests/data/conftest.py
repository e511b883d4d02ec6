"""The fixtures of toy_splits.py for the tests of the data layer."""

from toy_splits import family_config, write_data  # noqa: F401
