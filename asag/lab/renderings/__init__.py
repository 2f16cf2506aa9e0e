"""Models that learn from a folder of renderings: Fluent Emoji 3D, named by emojibase. The folder isn't part of this."""
