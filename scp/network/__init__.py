"""Associations in both roles: bytes to PDUs (PS3.8) to DIMSE messages (PS3.7) and back. Knows no
archive.
"""
