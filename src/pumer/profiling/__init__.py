"""Cost: token counts, MACs, time, memory."""
