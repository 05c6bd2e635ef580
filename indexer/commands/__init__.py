"""The commands on what is in the archive, one module each; the work is in the other rooms."""
