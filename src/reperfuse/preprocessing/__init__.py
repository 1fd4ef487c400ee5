"""What happens to an image before a network or a deconvolution sees it."""
