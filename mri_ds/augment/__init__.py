"""Random variation of training samples: dice first (`sample_params`), then a deterministic `apply`."""
