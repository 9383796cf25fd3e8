from __future__ import annotations


class ImportFailed(Exception):
    """Nothing was written. The text says what is wrong, with file, line and column, a line each."""
