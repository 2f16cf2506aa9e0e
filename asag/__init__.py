"""Adversarial Sinkhorn Attention Guidance for diffusion models (see README.md)."""

__version__ = "0.1.0"
