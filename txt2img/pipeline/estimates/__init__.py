"""Estimates of time and memory, from past runs."""
