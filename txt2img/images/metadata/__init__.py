"""Metadata of A1111, ComfyUI, NovelAI and other programs, read into requests."""
