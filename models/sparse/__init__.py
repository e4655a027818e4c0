"""Features on sparse voxel grids: the grid, convolution, resampling, windows."""
