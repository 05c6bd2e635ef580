"""The commands that make an archive and fill it from files, one module each."""
