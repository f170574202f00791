"""What several tests use: servers and models that say what a script tells them."""
