"""Traces of a forward, and drawings of them."""
