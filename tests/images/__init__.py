"""Tests of the images: built for real, and run as a restricted pod would."""
