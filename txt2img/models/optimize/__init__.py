"""Optimisations of networks: the networks themselves stay plain torch."""
