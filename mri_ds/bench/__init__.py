"""Measurements beside other people's code, in one run and on the same data: `mri-ds bench`."""
