"""What cloudai remembers: the ledger, and who leads."""
