"""DICOM as bytes: Part 10 files, elements, text and UIDs, read within bounds. Knows no tree and
opens no file.
"""
