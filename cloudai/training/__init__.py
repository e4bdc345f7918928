"""Training: from a function or a module to a run that survives its machines, and to a model."""
