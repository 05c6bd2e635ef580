"""Storage Commitment (PS3.4 J) as SCP: a request is kept, checked against the disk, and reported
on.
"""
