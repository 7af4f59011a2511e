"""Pre-training of the small models that ship with the package, in the built-in world."""
