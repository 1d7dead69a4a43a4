"""The essay as an executable document: every claim of it, tested on real models."""
