"""Benchmarks of ruvector against its peers: ``python -m benchmarks --help``."""
