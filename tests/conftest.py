"""Fixtures that several test modules use."""

import pausing
from running import start
from serving import serve

__all__ = ["serve", "start"]

pausing.mend()
