"""Measurements behind what this project says, each repeatable with one command."""
