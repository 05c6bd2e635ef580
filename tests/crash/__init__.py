"""Kills, power loss, failing system calls and interleavings: what is promised holds."""
