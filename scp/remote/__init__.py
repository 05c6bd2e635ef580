"""Other archives, as their user: is it there, what has it, what of that is missing here, fetch
it.
"""
