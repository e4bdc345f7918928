"""The driver of an existing Ray cluster: jobs through its Jobs API, and nothing of Ray imported here.

Nothing is imported here at all: each job begins with `cloudai.drivers.ray.launch`.
"""
