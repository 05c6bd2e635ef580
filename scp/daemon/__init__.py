"""`plainpacs serve` as a service: receivers and indexer kept running, reloads, systemd, metrics."""
