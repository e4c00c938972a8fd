"""Networks: U-Net, VAE, CLIP, TAESD and the tokenizer."""
