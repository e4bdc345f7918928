"""A driver for cloudai that keeps everything in one folder."""
