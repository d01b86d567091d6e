"""Held-out figures, tables and pictures of a trained network."""
