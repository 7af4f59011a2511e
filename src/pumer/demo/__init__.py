"""Fine-tune, reduce, compare and report on the built-in world."""
