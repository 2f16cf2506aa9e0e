"""Experiments on Sinkhorn drifting."""
