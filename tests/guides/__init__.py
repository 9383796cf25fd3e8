"""Runs the snippets of the guides as their reader would, and compares what they print with what the guide shows.

Our own, on markdown-it: the libraries that do this (mktestdocs, sybil, byexample) know Python and perhaps a shell, and
ours go on from a shell to JavaScript, Python and SQL and back, in one project and one environment.
"""
