"""The bundled sample shop."""
