"""Networks: U-Net, transformers, VAE, TAESD, text encoders and tokenizers."""
