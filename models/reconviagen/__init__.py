"""ReconViaGen: VGGT features of many views condition the two flows of TRELLIS (arXiv 2510.23306)."""
