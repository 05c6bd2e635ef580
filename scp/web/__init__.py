"""The archive in a browser: a study list, DICOMweb (PS3.18), and OHIF on the same files."""
