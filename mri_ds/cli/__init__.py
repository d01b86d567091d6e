"""The console script `mri-ds`: one file per group of commands. Modules here import what a command runs inside that command."""
