from __future__ import annotations


class ImportFailed(Exception):
    """The text says what is wrong, with file, line and column, a line each, and what was written."""
