"""Fewer image tokens in a prompt, before the language model sees it: one file per method."""
