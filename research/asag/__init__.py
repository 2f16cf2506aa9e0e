"""Experiments on Adversarial Sinkhorn Attention Guidance."""
