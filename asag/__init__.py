"""Adversarial Sinkhorn Attention Guidance for diffusion models (see README.md)."""

__version__ = "1.0.0"
