"""What guidance does to the pictures of renderings."""
