"""Layers: tensors in, tensors out. No file, no configuration object and no rank is known here."""
