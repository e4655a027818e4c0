"""Textures baked from images: which view sees a point, what it says of its colour, how views are blended."""
