"""Checkpoint layouts: detection, key maps and diffusers configs."""
