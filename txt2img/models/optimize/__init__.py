"""Optimisations of networks for CPU and GPU; the networks themselves stay plain."""
