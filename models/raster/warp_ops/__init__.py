"""The Warp implementation: one module per operation, each with its kernels and its autograd function."""
