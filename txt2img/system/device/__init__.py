"""Devices, memory and offloading, with torch."""
