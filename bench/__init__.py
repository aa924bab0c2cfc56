"""Benchmarks against the rivals of the field, interleaved and gated: ``python -m bench --help``."""
