"""Taking instances out: into the trash, back from it, and erased for good."""
