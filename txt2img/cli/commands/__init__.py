"""Commands, one per file; cli/registry.py lists them."""
