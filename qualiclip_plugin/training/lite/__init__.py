"""How the head of ``qualiclip-lite`` is fitted."""
