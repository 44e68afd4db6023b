"""What both packages stand on: files, documents, images, errors. Nothing here knows of what is above it."""
