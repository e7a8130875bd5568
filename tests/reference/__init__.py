"""Slow, obvious implementations in float64, written from METRICS' definitions alone. The package imports none of it."""
