"""Fixtures that several test modules use."""

from running import start

__all__ = ["start"]
