"""Requests: what to draw, from options, prompt files, sweeps and wildcards. No torch."""
