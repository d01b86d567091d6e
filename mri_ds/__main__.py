"""`python -m mri_ds` is `mri-ds`."""

from mri_ds.cli.main import main

if __name__ == "__main__":
    main()
