"""A deployment on Ray Serve: the part that runs inside of the cluster, started by the driver ``ray`` by its name."""
