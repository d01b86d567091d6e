"""Is training the same however it is spread over ranks? Every layout beside one plain PyTorch process."""
