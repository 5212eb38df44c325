"""What both halves stand on: it imports the standard library and nothing of ours."""
