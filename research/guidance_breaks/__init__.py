"""Experiments on adaptive guidance ("When guidance breaks")."""
