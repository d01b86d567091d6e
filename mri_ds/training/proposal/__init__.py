"""A run for some data on some machine: every setting with the reason for it, in a line that a person can disagree with."""
