"""Data: sources, formats, templates, tokenisation, packing and the prepared cache."""
