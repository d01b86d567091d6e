"""How it runs: the only place that imports deepspeed or torch.distributed."""
