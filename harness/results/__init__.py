"""The output of a run: scores of every image, and figures made from them."""
