"""Functions that two or more methods share. Arrays are numpy or torch: the same code runs on both."""
