"""Compiled forwards: one graph per shape, CUDA graphs, inputs padded into buckets."""
