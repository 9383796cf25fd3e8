"""Runs the snippets of the guides as their reader would, and compares what they print with what the guide shows."""
