"""How far predicted bodies are from the truth, measured as the paper measures it."""
