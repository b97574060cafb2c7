"""What things say: text to vectors."""
