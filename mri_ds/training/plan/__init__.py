"""What a run will need, said before it is queued: memory of a rank, bytes on the wire, time of a step.

Nothing here builds weights or joins ranks: parameters are counted on the meta device, and one micro-batch runs through the real
network and losses on fake tensors, which have shapes and no numbers.
"""
