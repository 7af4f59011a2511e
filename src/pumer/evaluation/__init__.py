"""Accuracy: answering, ranking, scoring, and statistics of the scores."""
