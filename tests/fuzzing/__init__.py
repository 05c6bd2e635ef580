"""Mutated input: ``python -m tests.fuzzing``, and a short run of it."""
