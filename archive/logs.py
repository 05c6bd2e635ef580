"""How the programs that go on running speak: one line per event on stderr."""

from __future__ import annotations

import logging


def set_up(level: str) -> None:
    """Time, level and message on stderr, from ``level`` on; libraries speak only at debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("plainpacs").setLevel(level.upper())
    # Their warnings are of peers' mistakes and of values; ours say what matters in one line.
    quiet = logging.DEBUG if level == "debug" else logging.CRITICAL + 1
    for name in ("pynetdicom", "pydicom", "py.warnings"):
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(True)
