"""Looking for damage, as a stream of findings that changes nothing; and mending what is safe to
mend.
"""
