"""File formats: safetensors, dtypes and JSON configs."""
