"""Samplers, schedules, guidance and noise: the maths of diffusion."""
