"""The three backends side by side, each in its own environment."""
