"""`plainpacs serve` as a service: receivers and indexer kept running, reloads, systemd, metrics."""

import plainpacs.scp.network  # noqa: F401 - before anything loads pydicom: see there
