"""How it adds up: histories, channels, their fusion, and how well it ranks."""
