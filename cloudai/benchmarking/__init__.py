"""How fast a machine is at a frozen workload, and what that costs, beside published platforms."""
