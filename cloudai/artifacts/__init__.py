"""What is kept: the store, checkpoints, and models with their signature and hashes."""
