"""Faster vision-language transformers: prune and merge the tokens the text does not ask about."""
