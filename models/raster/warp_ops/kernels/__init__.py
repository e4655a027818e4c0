"""Warp kernels, one module per compilation unit; written in the subset of Python that Warp compiles."""
