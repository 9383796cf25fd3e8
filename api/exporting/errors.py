from __future__ import annotations


class ExportFailed(Exception):
    """The text is one line that says what is wrong and what to do. No file was written."""
