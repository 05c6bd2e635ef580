"""The archive as names: who an instance is, where it lies, what lies there; and the only system
calls that change it.
"""
