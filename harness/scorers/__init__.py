"""Scorers: anything that turns images into one number each, with a declared direction."""
