"""Files ↔ networks: weight files of several layouts, checked, renamed and loaded strictly."""
