"""The default model: its data set, training recipes and evaluation. Not in the wheel."""
