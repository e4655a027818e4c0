"""Cameras, meshes and signed-distance grids: geometry that every model shares."""
