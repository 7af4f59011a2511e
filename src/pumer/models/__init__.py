"""Models that transformers does not have, written as it would have them."""
