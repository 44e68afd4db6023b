"""The networks: QualiCLIP, its towers and prompts, and what scores an image of any size."""
