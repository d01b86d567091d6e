"""Labelled synthetic brain MRI."""
