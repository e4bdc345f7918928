"""A search of hyper-parameters: one run whose children are trials."""
