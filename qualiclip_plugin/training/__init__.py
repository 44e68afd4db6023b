"""Training without human scores: degradations drawn, losses, the trainer, pyiqa's own trainer."""
