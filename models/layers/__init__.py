"""Transformer layers that several networks share."""
