"""Comparing methods: `robustness` measures what disturbances cost, `rad` holds the published figures of one benchmark."""
