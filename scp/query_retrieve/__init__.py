"""The Query/Retrieve Service Class (PS3.4 C) as SCP: C-FIND, C-MOVE, C-GET."""
