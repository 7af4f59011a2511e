"""Searching methods, layers and ratios for a model, a task and the machine at hand."""
