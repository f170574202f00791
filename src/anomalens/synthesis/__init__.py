"""Making pictures worse on purpose. `corruptions`: 17 graded disturbances of light, lens, sensor and viewpoint."""
