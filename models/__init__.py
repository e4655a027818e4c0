"""Reconstruction models behind one interface, and the renderer they share."""
