"""Tests of ``scp/``."""
