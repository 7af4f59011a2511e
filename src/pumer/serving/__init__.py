"""Models on a Ray cluster: batches and requests."""
