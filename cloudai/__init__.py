"""Train, deploy and monitor models from one notebook."""

__version__ = "0.1.0"
