"""``python -m plainpacs`` is the command ``plainpacs``."""

from plainpacs.archive.cli import main

main()
