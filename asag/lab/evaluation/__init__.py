"""Images of a local diffusers pipeline for many prompts and methods, on this machine or on Ray, and their metrics."""
