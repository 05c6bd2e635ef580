"""Fixtures that several test modules use."""

from running import start
from serving import serve

__all__ = ["serve", "start"]
