"""The process that listens: who may associate, what each association may ask, what is counted
and audited.
"""
