"""Weights: files and folders into networks."""
