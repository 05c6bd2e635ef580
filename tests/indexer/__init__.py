"""Tests of ``indexer/``."""
