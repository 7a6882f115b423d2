"""`prompt.kind: auto` with the part `text`: the best text, then soft and deep prompts that start from it, in one budget."""
