"""The physics of dynamic susceptibility contrast, from signal to maps."""
