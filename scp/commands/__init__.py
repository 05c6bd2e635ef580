"""The commands that serve and that call others, one module each."""
