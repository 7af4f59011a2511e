"""Measurements and experiments of the repository; results in `results/`."""
