"""Training as the paper does it (§3.3, §4): losses, motion discriminator, batches, loop."""
