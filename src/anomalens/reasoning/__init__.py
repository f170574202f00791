"""Talking with language models, rules, and running what they write where it can do no harm."""
