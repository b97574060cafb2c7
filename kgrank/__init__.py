"""kgrank: knowledge-graph-augmented recommendations for shops."""
