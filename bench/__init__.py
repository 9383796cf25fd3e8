"""Benchmarks. Each prints a ratio of two things measured in turns in one run, since figures of different runs, or of
different machines, cannot be compared. `make bench` runs them all; none is a test.
"""
