"""Alerts and dashboard with the real Prometheus: by made-up series, and over a scrape of the live operator."""
