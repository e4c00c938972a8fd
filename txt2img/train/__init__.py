"""Training: pictures and captions → a model that the rest of the program loads."""
