"""DICOM: masks as DICOM SEG, and series from and to a DICOMweb server."""
