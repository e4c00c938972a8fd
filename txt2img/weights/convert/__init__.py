"""Convert weights: between precisions, quantisations, file formats and layouts."""
