"""From features to one prediction per task."""
