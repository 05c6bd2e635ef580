"""Copies for elsewhere: a folder with a DICOMDIR, a zip, a document for OHIF."""
