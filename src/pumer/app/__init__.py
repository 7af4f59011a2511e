"""The page of `pumer app`: a model beside its reduced self."""
