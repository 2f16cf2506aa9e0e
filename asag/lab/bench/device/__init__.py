"""`python -m asag bench device`: checks and measures on a machine with an NVIDIA GPU, and writes a page of results."""
