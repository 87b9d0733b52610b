"""Generation: sequences of tokens, which live over many steps, beside the batches of the other kinds."""
