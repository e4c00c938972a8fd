"""The maths of diffusion: levels, schedules, predictions, guidance, samplers; no networks."""
