"""``python -m plainpacs`` is the command ``plainpacs``."""

from plainpacs.archive.app.cli import main

main()
