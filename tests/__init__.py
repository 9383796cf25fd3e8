"""Tests, one file a behaviour. The fixtures are in `conftest`, what they hand out in `harness`."""
