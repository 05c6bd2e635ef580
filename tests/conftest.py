"""Fixtures that several test modules use."""

import signal

from tests.support import pausing
from tests.support.receiver import start
from tests.support.serve import serve

__all__ = ["serve", "start"]

pausing.mend()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a script's background ignores it, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
