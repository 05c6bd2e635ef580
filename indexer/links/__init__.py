"""A tree of symbolic links beside the archive, named for people."""
