"""Benchmarks: each module has ``measure()``, which returns rows of (name, value, unit, budget)."""
