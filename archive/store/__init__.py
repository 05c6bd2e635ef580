"""Storing an instance, in the order that makes 0000 true: temporary file, link, folder sync,
manifest line, pending marker.
"""
