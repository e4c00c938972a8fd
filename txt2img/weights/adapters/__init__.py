"""Adapters: LoRA, LyCORIS, OFT and textual inversion."""
