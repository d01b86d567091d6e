"""From files to batches: NIfTI, dataset layouts, synthetic subjects, preprocessing, shards, loading."""
