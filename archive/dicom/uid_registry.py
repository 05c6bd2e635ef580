"""The UIDs that DICOM registered (PS3.6 Annex A), as pydicom lists them, without loading pydicom.

To import any module of pydicom loads all of it, and numpy and Pillow with it: 26 MB and 0.3 s in
each receiver process, for one table. So the module of the table is loaded by itself, below
pydicom's API, which has no public name for it either. Checked against pydicom 3.0;
``test_negotiation`` fails when the table moves or changes its form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

_TABLE = "_uid_dict"

Entry = tuple[str, str, str, str, str]
"""Name, type, more on it, ``Retired`` or nothing, keyword."""


def table_of_pydicom(name: str) -> ModuleType:
    """The module ``name`` of pydicom, which imports nothing, loaded by itself."""
    package = importlib.util.find_spec("pydicom")
    file = Path((package and package.origin) or "").with_name(name + ".py")
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"pydicom has no such table: {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REGISTERED = cast(Mapping[str, Entry], table_of_pydicom(_TABLE).UID_dictionary)
"""By UID."""
