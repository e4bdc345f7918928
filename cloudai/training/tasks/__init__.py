"""The tasks that pretrained models of transformers are trained for: their data, and their rows as the loop takes them."""
