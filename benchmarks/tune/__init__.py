"""Tile sizes of the Triton search: python -m benchmarks.tune."""
