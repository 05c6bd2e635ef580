"""Associations in both roles, by pynetdicom, driven by us: bytes to messages (PS3.7, PS3.8) and
back. Knows no archive.

pydicom imports numpy and Pillow where they are installed: 16 MB and 0.2 s for each receiver and
each `echo`, which decode no pixels. It does without them in a process that loads it from here.
"""

import sys

if "pydicom" not in sys.modules:
    _HIDDEN = [name for name in ("numpy", "PIL") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(_HIDDEN))  # type: ignore[arg-type]  # so that importing fails
    try:
        import pydicom  # noqa: F401 - to have it loaded now
    finally:
        for _name in _HIDDEN:
            del sys.modules[_name]
