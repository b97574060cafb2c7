"""What is known: tables in, one typed graph, and the paths through it."""
