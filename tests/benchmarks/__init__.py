"""Measurements beside peers; they assert nothing."""
