"""Shared by both packages: files, documents, images, errors. It imports nothing from other rooms."""
