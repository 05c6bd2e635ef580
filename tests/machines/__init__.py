"""Several machines on one archive: the scenarios of their failures."""
