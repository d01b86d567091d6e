"""Sizes of the network as rows of one table. Imports nothing, so that the command line knows them at once."""

# params (total)      tiny: tests     32 M     85 M    200 M    500 M
SCALES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_experts": 4, "expert_hidden": 32, "stem_channels": 4},
    "small": {"embed_dim": 128, "num_layers": 4, "num_heads": 4, "num_experts": 64, "expert_hidden": 272, "stem_channels": 8},
    "base": {"embed_dim": 256, "num_layers": 8, "num_heads": 8, "num_experts": 16, "expert_hidden": 736, "stem_channels": 8},
    "large": {"embed_dim": 512, "num_layers": 12, "num_heads": 8, "num_experts": 8, "expert_hidden": 1024, "stem_channels": 16},
    "xl": {"embed_dim": 768, "num_layers": 16, "num_heads": 12, "num_experts": 8, "expert_hidden": 1360, "stem_channels": 16},
}
