"""plainpacs: a DICOM archive made of plain files."""

__version__ = "0.1.0"
