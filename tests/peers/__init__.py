"""Tests with DCMTK, Orthanc and pynetdicom as the other side."""
