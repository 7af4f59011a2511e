"""Released checkpoints as models that pumer and transformers load."""
