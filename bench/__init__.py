"""Benchmarks: one file per operator, each beside the peers its users would otherwise call."""
