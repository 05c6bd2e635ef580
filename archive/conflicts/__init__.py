"""Other bytes under a stored UID: what waits, how it differs, and which one is published."""
