"""What a run leaves: scores of every image, and the figures made from them."""
